"""What a client is told when it cannot be served: OpenAI's error object, one place for status codes."""

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
LOST = "there is no such conversation, draft or task"  # the same words whether it never was or belongs to someone else


class Refused(Exception):
    """An answer of 4xx or 503: the status, what is wrong in words, and OpenAI's param and code."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_seconds: int = 0
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {"retry-after": str(retry_seconds)} if retry_seconds else {}

    def body(self) -> bytes:
        """{"error": {message, type, param, code}} as JSON."""
        return error_body(self.status, self.message, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def lost() -> Refused:
    """404 for what is not there or is someone else's."""
    return Refused(404, LOST, code="not_found")


def decode(raw: bytes, kind: type[T], invalid: int = 400) -> T:
    """A JSON body as a `kind`. Raises Refused: 400 for what is no JSON, `invalid` for JSON of another shape."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        _, _, place = str(error).partition(" - at `$")
        raise Refused(invalid, str(error), param=place.strip("`.") or None, code="invalid_value") from None
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # broken JSON, not UTF-8, half a surrogate pair
        raise Refused(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def plain(value: Any) -> Any:
    """Structs and tuples as what JSON is made of."""
    return msgspec.to_builtins(value)
