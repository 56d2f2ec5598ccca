"""Personal data in pages: e-mail addresses, IP addresses, ID and card numbers and phone numbers, masked and counted.

A number counts only with its form and, where it has one, its check: RE2 finds the few pages that hold something like
it (about 1 GB/s), then Python's patterns and checksums decide. Text in free form (names, postal addresses) stays.

Reach: e-mails and public IPs as in FineWeb (Penedo et al. 2024, arXiv:2406.17557, section 3.6; datatrove's PIIFormatter),
to which phone, ID and card numbers are added, those of China and Taiwan among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fledge.core.config import Settings
from fledge.curate.pages import Kernel, kept_all


class PersonalSettings(Settings, frozen=True, kw_only=True):
    """What stands where personal data stood; None leaves that kind alone and uncounted.

    The defaults cannot be taken for real data, by a reader or by this module: masking twice changes nothing, and a
    model trained on them has learnt no address it could give away. An invented address would be somebody's.
    """

    email: str | None = "<email>"
    "In place of an e-mail address."
    phone: str | None = "<phone>"
    "In place of a phone number."
    ip: str | None = "<ip>"
    "In place of a public IP address."
    id: str | None = "<id>"
    "In place of an ID number of China, Taiwan or the US."
    card: str | None = "<card>"
    "In place of a payment card's number."


class Kind(NamedTuple):
    """One kind of personal data."""

    name: str  # of the setting, and of the column after "pii_"
    hint: str  # RE2: every page with a match has one of this too
    patterns: tuple[re.Pattern[str], ...]  # the group "number", where there is one, is what is masked
    holds: Callable[[re.Match[str]], bool]  # whether a match is one in truth


_AFTER_DIGIT = r"(?![0-9A-Za-z_]|[.\-][0-9])"
_AT, _DOT = r"(?:@| ?[\[(](?:at|AT)[\])] ?)", r"(?:\.| ?[\[(](?:dot|DOT)[\])] ?)"
_LOCAL, _LABEL = r"[A-Za-z0-9_][A-Za-z0-9._%+\-]{0,63}", r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_EMAIL = (
    re.compile(rf"(?<![A-Za-z0-9._%+\-]){_LOCAL}{_AT}(?:{_LABEL}{_DOT})+[A-Za-z]{{2,24}}(?![A-Za-z0-9_@(])"),
    re.compile(rf"(?<=<){_LOCAL} at (?:{_LABEL}\.)+[A-Za-z]{{2,24}}(?=>)"),
)
_NO_DOMAIN = re.compile(r"\.(?:png|jpe?g|gif|svg|webp)$", re.IGNORECASE)  # icon@2x.png

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP = (
    re.compile(rf"(?<![0-9A-Za-z._\-]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z_]|[.\-][0-9A-Za-z])"),
    re.compile(r"(?<![0-9A-Za-z:.])[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?:::)?(?![0-9A-Za-z:])"),
)
_BEFORE_VERSION = re.compile(
    r"(?:(?:\b(?:version|ver|release|build|revision|rev|firmware|kernel|section|chapter|table|figure)s?|版本|版|§)"
    r"[ .:=#]{0,3}|[A-Za-z]/|[=~<>!]= ?)$",
    re.IGNORECASE,
)
_VERSION_BELOW = 64  # four numbers below it are a version or a section: 1 address in 256 is lost

_ID_CHINA = re.compile(r"(?<![0-9A-Za-z_.])[1-8][0-9]{5}([ \-]?)(?:19|20)[0-9]{6}\1[0-9]{3}[0-9Xx]" + _AFTER_DIGIT)
_ID_TAIWAN = re.compile(r"(?<![0-9A-Za-z_])[A-Z][1289][0-9]{8}(?![0-9A-Za-z_])")
_ID_US = re.compile(r"(?<![0-9A-Za-z_.\-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}" + _AFTER_DIGIT)
_TAIWAN_LETTERS = "ABCDEFGHJKLMNPQRSTUVXYWZIO"  # A is 10, B is 11, ...

_CARD = tuple(
    re.compile(r"(?<![0-9A-Za-z_.])(?<![0-9]-)" + form + _AFTER_DIGIT)
    for form in (
        r"[0-9]{13,19}",
        r"[0-9]{4}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}\1[0-9]{3}",
        r"[0-9]{4}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}",
        r"[0-9]{4}([ \-])[0-9]{6}\1[0-9]{4,5}",
    )
)
_ISSUER = re.compile(
    r"4(?=[0-9]{12}$|[0-9]{15}$|[0-9]{18}$)"  # Visa
    r"|(?=[0-9]{16}$)(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|220[0-4])"  # Mastercard, Mir
    r"|(?=[0-9]{15}$)3[47]|(?=[0-9]{14}$)3(?:0[0-5]|[689])"  # American Express, Diners
    r"|(?=[0-9]{16,19}$)(?:6(?:011|4[4-9]|5|2)|35(?:2[89]|[3-8])|5018|5020|5038|5893|6304|6759|676[1-3])"
)  # Discover, UnionPay, JCB, Maestro

_BARE = r"(?<![0-9A-Za-z_.+$€¥£/=])"  # not in a decimal, a price, a path or a query
_PHONE = (
    re.compile(  # +44 20 7946 0958, +33 1 23 45 67 89, +44 (0)20 ...
        r"(?<![0-9A-Za-z+])\+[1-9][0-9]{0,2}(?:[ .\-]?\(0\))?[ .\-]?(?:[0-9]{1,5}|\([0-9]{1,5}\))(?:[ .\-]?[0-9]{2,5}){1,4}"
        r"(?![0-9A-Za-z_]|\.[0-9])"
    ),
    re.compile(  # (415) 555-2671, 415-555-2671, 415.555.2671, with or without 1
        r"(?<![0-9A-Za-z_.+\-/=])(?:1[ .\-])?(?:\([2-9][0-9]{2}\)[ \-]?[2-9][0-9]{2}[ .\-]|[2-9][0-9]{2}([.\-])[2-9][0-9]{2}\1)"
        r"[0-9]{4}" + _AFTER_DIGIT
    ),
    re.compile(  # mobile numbers of China
        _BARE + r"(?:(?:00)?86[ \-]?)?1[3-9][0-9]([ \-]?)"
        r"[0-9]{4}\1[0-9]{4}(?![0-9A-Za-z_]|\.[0-9])"
    ),
    re.compile(r"(?<![0-9A-Za-z_.\-/=])(?:\(0[1-9][0-9]{1,2}\) ?|0[1-9][0-9]{1,2}-)[2-9][0-9]{6,7}" + _AFTER_DIGIT),
    re.compile(_BARE + r"09[0-9]{2}([ \-]?)[0-9]{3}\1[0-9]{3}" + _AFTER_DIGIT),  # mobile numbers of Taiwan
    re.compile(r"(?<![0-9A-Za-z_.\-/=])(?:\(0[2-8][0-9]{0,2}\) ?|0[2-8][0-9]{0,2}-)[2-9][0-9]{2,3}-[0-9]{4}" + _AFTER_DIGIT),
    re.compile(  # any that is called one: "Tel: 020 7946 0958", "电话：62345678"
        r"(?i:\b(?:tel|phone|telephone|fax|mobile|cell|whatsapp)|电话|電話|手机|手機|传真|傳真)"
        r"(?: ?(?:no\.?|number|号码|號碼|号|號))?\.?[ ]?[:：][ ]{0,3}"
        r"(?P<number>\(?[0-9](?:[ .()\-]{0,2}[0-9]){6,14})(?![0-9A-Za-z_])"
    ),
)  # fmt: skip


def personal_kernel(settings: PersonalSettings) -> Kernel:
    """Masks personal data in the text and counts it: int32 columns pii_email, pii_ip, pii_id, pii_card, pii_phone.

    Never rejects. A kind whose setting is None has no column. Columns other than the text are left as they are.
    """
    masks = {name: getattr(settings, name) for name in PersonalSettings.__struct_fields__}
    kinds = [kind for kind in KINDS if masks[kind.name] is not None]

    def kernel(pages: pa.Table) -> pa.Table:
        column = pages["text"].combine_chunks()
        edited: dict[int, str] = {}
        counts = {kind.name: np.zeros(len(pages), dtype=np.int32) for kind in kinds}
        for kind in kinds:
            for i in np.flatnonzero(pc.match_substring_regex(column, kind.hint)).tolist():
                text = edited.get(i) or column[i].as_py()
                masked, count = mask(text, kind, masks[kind.name])
                if count:
                    edited[i] = masked
                    counts[kind.name][i] = count
        if edited:
            rows = np.zeros(len(pages), dtype=bool)
            rows[list(edited)] = True
            texts = pa.array([edited[i] for i in sorted(edited)], column.type)
            column = pc.replace_with_mask(column, pa.array(rows), texts)
            pages = pages.set_column(pages.schema.get_field_index("text"), "text", column)
        for name, count in counts.items():
            pages = pages.append_column(f"pii_{name}", pa.array(count))
        return kept_all(pages)

    return kernel


def mask(text: str, kind: Kind, placeholder: str) -> tuple[str, int]:
    """The text with every one of this kind replaced, and how many there were."""
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        if not kind.holds(match):
            return match[0]
        count += 1
        start, end = match.span("number" if "number" in match.re.groupindex else 0)
        return match[0][: start - match.start()] + placeholder + match[0][end - match.start() :]

    for pattern in kind.patterns:
        text = pattern.sub(replaced, text)
    return text, count


def luhn(digits: str) -> bool:
    """The check of payment cards (ISO/IEC 7812-1, annex B): every second digit from the right doubled, sum 0 mod 10."""
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])) % 10 == 0


def _is_email(match: re.Match[str]) -> bool:
    address = match[0]
    return not (_NO_DOMAIN.search(address) or address.startswith(("git@", "hg@", "svn@")))


def _is_public_ip(match: re.Match[str]) -> bool:
    """A public host and no version: 10.0.0.1, 224.0.0.1, 1.2.3.4, 93.184.216.0 and "Chrome/109.0.54.1" stay."""
    if ":" in match[0]:
        try:
            return IPv6Address(match[0]).is_global
        except ValueError:  # eight groups or one "::" are needed
            return False
    if _BEFORE_VERSION.search(match.string, max(0, match.start() - 16), match.start()):
        return False
    octets = [int(octet) for octet in match[0].split(".")]
    address = IPv4Address(match[0])
    return max(octets) >= _VERSION_BELOW and octets[3] > 0 and address.is_global and not address.is_multicast


def _is_id(match: re.Match[str]) -> bool:
    if match.re is _ID_CHINA:
        return _is_id_of_china(re.sub("[ -]", "", match[0]))
    return match.re is _ID_US or _is_id_of_taiwan(match[0])


def _is_id_of_china(number: str) -> bool:
    """A birth date, and the check character of GB 11643-1999 (ISO 7064, MOD 11-2)."""
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_id_of_taiwan(number: str) -> bool:
    """The letter as two digits, then weights 1, 9, 8, ... 1, 1: the sum is 0 mod 10."""
    tens, ones = divmod(_TAIWAN_LETTERS.index(number[0]) + 10, 10)
    weights = (8, 7, 6, 5, 4, 3, 2, 1, 1)
    return (tens + 9 * ones + sum(w * int(digit) for w, digit in zip(weights, number[1:], strict=True))) % 10 == 0


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub("[ -]", "", match[0])
    return _ISSUER.match(digits) is not None and luhn(digits)


def _is_phone(match: re.Match[str]) -> bool:
    """Of a length that is dialled, and no round number (+10 000 000, 15000000000)."""
    digits = re.sub("[^0-9]", "", match[0].replace("(0)", ""))
    if match[0].startswith("+1"):
        return re.fullmatch("1[2-9][0-9]{2}[2-9][0-9]{6}", digits) is not None
    least = 8 if match[0].startswith("+") else 7
    return least <= len(digits) <= 15 and not digits.endswith("00000")


KINDS = (
    Kind("email", r"[A-Za-z0-9._%+\-]@[A-Za-z0-9]|[\[(](?:at|AT)[\])]|<[A-Za-z0-9._%+\-]+ at ", _EMAIL, _is_email),
    Kind("ip", r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]", _IP, _is_public_ip),
    Kind("id", r"[0-9]{8}|[0-9]{3}-[0-9]{2}-[0-9]{4}", (_ID_CHINA, _ID_TAIWAN, _ID_US), _is_id),
    Kind("card", r"[0-9]{13}|[0-9]{4}[ \-][0-9]{4,6}[ \-][0-9]{4}", _CARD, _is_card),
    Kind("phone", r"[0-9](?:[ .()\-]{0,2}[0-9]){6}", _PHONE, _is_phone),
)
"In order: what an earlier kind has masked, a later one does not see."
