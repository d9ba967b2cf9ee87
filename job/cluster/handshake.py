"""Handshake in which both ends of a new connection prove that they know the secret of the run, without sending it.

    chief   {"secret": PUBLIC_ID, "nonce": A}     identifies the secret, so that a worker with an older one reads it again
    worker  {"nonce": B, "proof": HMAC-SHA-256 of ("worker", A, B)}
    chief   {"proof": HMAC-SHA-256 of ("chief", A, B)}

A proof is valid for one connection only, because each end adds a new random number, and for one role only, because it
contains the role. An attacker can neither replay a recorded proof nor send one back to its sender.
"""

import hmac
import re
import secrets
from collections.abc import Callable

from job.cluster.connection import Connection, Lost, Message
from job.cluster.secret import Secret

_HEX = re.compile("[0-9a-f]{16,64}")


class SecretUnknown(Lost):
    """The output has no secret (`has_none`), or not the chief's. The right one may appear later."""

    def __init__(self, *, has_none: bool) -> None:
        super().__init__("--out has no secret yet" if has_none else "--out has another secret than the chief's")
        self.has_none = has_none


def admit(line: Connection, secret: Secret) -> None:
    """Check, on the chief, that the worker knows the secret. Then prove to it that the chief does.

    Raises:
        Lost: if the other end does not know the secret.
    """
    own = secrets.token_hex(16)
    line.say(secret=secret.public_id, nonce=own)
    answer = line.hear_any()
    other = _hex(answer, "nonce")
    _check(answer, secret.proof("worker", own, other))
    line.say(proof=secret.proof("chief", own, other))


def introduce(line: Connection, find_secret: Callable[[], Secret | None]) -> None:
    """Prove to the chief that this worker knows the secret. Then check that the chief does.

    Raises:
        SecretUnknown: if `find_secret` does not return the chief's secret.
        Lost: if the other end does not know the secret.
    """
    greeting = line.hear_any()
    public_id, other = _hex(greeting, "secret"), _hex(greeting, "nonce")
    secret = find_secret()
    if secret is None or secret.public_id != public_id:
        raise SecretUnknown(has_none=secret is None)
    own = secrets.token_hex(16)
    line.say(nonce=own, proof=secret.proof("worker", other, own))
    _check(line.hear_any(), secret.proof("chief", other, own))


def _check(message: Message, expected: str) -> None:
    if not hmac.compare_digest(_hex(message, "proof"), expected):
        raise Lost("it does not know the secret of this run")


def _hex(message: Message, key: str) -> str:
    word = message.get(key)
    if not isinstance(word, str) or not _HEX.fullmatch(word):
        raise Lost("it does not use the protocol of this job")
    return word
