"""The gateway: one HTTP app for A1111's, OpenAI's and RunPod's clients, and a page.

It has two backs behind one protocol (`gateway.jobs.Jobs`): the worker in this process, and a RunPod
queue endpoint elsewhere.
"""
