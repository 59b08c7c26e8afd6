"""What the clients of A1111's API send beside what they want: empty and foreign fields. Pure."""
