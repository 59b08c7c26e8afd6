"""Checks Basic and Bearer. Wrong ones wait, without blocking others."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable

from gateway.http.head import Access, Refused

_LONGEST = 2000  # characters of a header that are looked at
# A browser asks its user for the login; a token is its password, with any name.
_ASK = {"WWW-Authenticate": 'Basic realm="gateway", charset="UTF-8"'}


class Logins:
    """Checks the header Authorization.

    Args:
        pause: seconds until the answer to a wrong login.
        at_once: wrong logins of one address that may wait; further ones are refused unread.
    """

    def __init__(
        self,
        access: Access,
        *,
        pause: float = 1.0,
        at_once: int = 10,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._access = access
        self._pause = pause
        self._at_once = at_once
        self._sleep = sleep
        self._waiting: Counter[str] = Counter()

    async def check(self, header: str | None, address: str) -> None:
        """Return if the login is right, or none is needed.

        Raises:
            Refused: 401, after a pause if it is wrong; 429 if too many wrong ones wait.
        """
        if not self._access.needs_login:
            return
        if header is None:
            raise Refused(401, "This server needs a login: send Basic or Bearer.", _ASK)
        if self._waiting[address] >= self._at_once:
            raise Refused(429, "Too many wrong logins: wait a moment.", {"Retry-After": "5"})
        if self._is_right(header):
            return
        self._waiting[address] += 1
        try:
            await self._sleep(self._pause)
        finally:
            self._waiting[address] -= 1
            self._waiting += Counter()  # removes the addresses at 0
        raise Refused(401, "The login is wrong: GATEWAY_LOGIN or GATEWAY_TOKEN has it.", _ASK)

    def _is_right(self, header: str) -> bool:
        scheme, _, given = header[:_LONGEST].partition(" ")
        token, login = self._access.token, self._access.login
        if scheme.lower() == "bearer":
            return _same(given.strip(), token)
        if scheme.lower() != "basic":
            return False
        try:
            text = base64.b64decode(given.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return False
        return _same(text, login) | _same(text.partition(":")[2], token)


def _same(given: str, secret: str) -> bool:
    """Whether they are equal, in the same time whatever they have in common."""
    return bool(secret) and hmac.compare_digest(given.encode(), secret.encode())
