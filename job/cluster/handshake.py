"""How both ends of a new connection prove that they know the secret of the run, without telling it.

    chief   {"secret": PUBLIC_ID, "nonce": A}     which secret it has, so that a worker with an older one looks again
    worker  {"nonce": B, "proof": HMAC-SHA-256 of ("worker", A, B)}
    chief   {"proof": HMAC-SHA-256 of ("chief", A, B)}

A proof holds for one connection, because each end puts a new random number into it, and for one end, because it names the
role. So neither a recorded proof nor one sent back to its maker is worth anything.
"""

import hmac
import re
import secrets
from collections.abc import Callable

from job.cluster.connection import Connection, Lost, Message
from job.cluster.secret import Secret

_HEX = re.compile("[0-9a-f]{16,64}")


class SecretUnknown(Lost):
    """The output holds another secret than the chief's, or none (`has_none`). It may show later."""

    def __init__(self, *, has_none: bool) -> None:
        super().__init__("--out holds no secret" if has_none else "--out holds another secret than the chief's")
        self.has_none = has_none


def admit(line: Connection, secret: Secret) -> None:
    """Let a worker prove itself to the chief, and prove the chief to it.

    Raises:
        Lost: where the other end does not know the secret.
    """
    own = secrets.token_hex(16)
    line.say(secret=secret.public_id, nonce=own)
    answer = line.hear_any()
    other = _hex(answer, "nonce")
    _check(answer, secret.proof("worker", own, other))
    line.say(proof=secret.proof("chief", own, other))


def introduce(line: Connection, find_secret: Callable[[], Secret | None]) -> None:
    """Prove a worker to the chief, and let the chief prove itself to it.

    Raises:
        SecretUnknown: where this worker cannot prove anything yet.
        Lost: where the other end is not the chief.
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
        raise Lost("it does not speak like a worker of this job")
    return word
