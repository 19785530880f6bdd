"""Postgres connection strings as they stand: libpq's parameters, in URLs and in keyword strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.urls import did_you_mean, hosts_and_ports

_SCHEME = re.compile(r"(?:postgres|postgresql)(?:\+\w+)?://", re.IGNORECASE)
_LOGIN = re.compile(r"([^@/:]*)(?::([^@/]*))?@")
_REST = re.compile(r"([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)
_KEYWORD = re.compile(r"\s*[A-Za-z_]+\s*=", re.ASCII)
_PAIR = re.compile(
    r"\s*([^\s=]*)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(?![\s'])((?:[^\s\\]|\\.?)*))", re.ASCII | re.DOTALL
)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)

# Every parameter that libpq has, old ones too, and the environment variable that stands in for it.
# PGCLIENTENCODING isn't here: it is meant for programs that show text, and Python's strings have none.
PARAMETERS: dict[str, str | None] = {
    "application_name": "PGAPPNAME",
    "authtype": None,
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": None,
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "fallback_application_name": None,
    "gssdelegation": "PGGSSDELEGATION",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "keepalives": None,
    "keepalives_count": None,
    "keepalives_idle": None,
    "keepalives_interval": None,
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "oauth_client_id": None,
    "oauth_client_secret": None,
    "oauth_issuer": None,
    "oauth_scope": None,
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "replication": None,
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "requiressl": None,
    "scram_client_key": None,
    "scram_server_key": None,
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslkeylogfile": None,
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslpassword": None,
    "sslrootcert": "PGSSLROOTCERT",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "tcp_user_timeout": None,
    "tty": None,
    "user": "PGUSER",
}
_ELSEWHERE = {"database": "dbname", "db": "dbname", "username": "user", "timeout": "connect_timeout"}
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
_USAGE = "use postgresql://user:password@host:5432/database, or host=localhost dbname=x password='a b'"


def is_keyword_string(text: str) -> bool:
    """Tell whether a text is libpq's `host=localhost dbname=x` rather than a URL."""
    return _KEYWORD.match(text) is not None


def read_settings(conn_string: str) -> dict[str, str]:
    """Read a connection string as it stands; raise `InvalidConfigError` where libpq would refuse it."""
    # Secrets that come from files often end in a newline.
    text = conn_string.strip()
    if "\0" in text:
        raise InvalidConfigError("a Postgres connection string holds no NUL; remove it")
    scheme = _SCHEME.match(text)
    pairs = list(_url_pairs(text[scheme.end() :]) if scheme else _keyword_pairs(text))
    check_known(name for name, _ in pairs)
    return dict(modern(name, value) for name, value in pairs)


def keyword_string(settings: Mapping[str, str]) -> str:
    """Write settings as `read_settings` reads them."""
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in settings.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("'", r"\'")


def unescaped(text: str) -> str:
    """Take away the backslashes before characters that stand for themselves."""
    return _ESCAPED.sub(r"\1", text)


def modern(name: str, value: str) -> tuple[str, str]:
    """Give a setting as it is written today."""
    if name == "requiressl":
        return "sslmode", "require" if value.startswith("1") else "prefer"
    return name, value


def _keyword_pairs(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None:
            raise InvalidConfigError(
                f'a Postgres connection string lacks a scheme, a "=" or a closing quote; {_USAGE}'
            )
        name, quoted, bare = found.groups()
        yield name, unescaped(bare if quoted is None else quoted)
        at = found.end()


def _url_pairs(rest: str) -> Iterator[tuple[str, str]]:
    login = _LOGIN.match(rest)
    parts = _REST.fullmatch(rest, login.end() if login else 0)
    place, path, query = parts.groups() if parts else ("", "", "")
    # To libpq the password ends at the first "@" and a login at the first "/".
    if "@" in place or (login and "?" in login[1]) or (not login and "@" in (path or "")):
        raise InvalidConfigError(
            'a Postgres URL has a stray "@"; in a name or a password write @ as %40, / as %2F'
        )
    user, password = login.groups() if login else ("", "")
    hosts, ports = (",".join(part) for part in zip(*hosts_and_ports(place, "Postgres"), strict=True))
    named = {"user": user, "password": password, "host": hosts, "port": ports, "dbname": path}
    yield from ((name, _decoded(text)) for name, text in named.items() if text)
    yield from _query_pairs(query or "")


def _query_pairs(query: str) -> Iterator[tuple[str, str]]:
    for item in query.removesuffix("&").split("&") if query else ():
        if item.count("=") != 1:
            raise InvalidConfigError(
                "after its ? a Postgres URL takes name=value&name=value; in a value write = as %3D, & as %26"
            )
        name, value = (_decoded(part) for part in item.split("="))
        # As Java's driver has it; libpq knows that too.
        yield ("sslmode", "require") if (name, value) == ("ssl", "true") else (name, value)


def _decoded(text: str) -> str:
    """Undo percent-encoding as libpq does: a plus sign stays, and nothing is guessed."""
    text = text.strip(" ")
    try:
        if " " in text or re.search("%(?:00|(?![0-9A-Fa-f]{2}))", text):
            raise ValueError(text)
        return unquote(text, errors="strict")
    except ValueError:
        # Without its cause, which quotes the text.
        raise InvalidConfigError(
            "a Postgres URL is percent-encoded UTF-8: write % as %25 and a space as %20"
        ) from None


def check_known(names: Iterable[str], place: str = "Postgres") -> None:
    """Raise `InvalidConfigError` where a name isn't one of libpq's parameters; `place` says who is asked."""
    before = ""
    for name in names:
        if name not in PARAMETERS:
            raise InvalidConfigError(
                f"the end of {before} reads as another parameter; percent-encode it in a URL, else quote it"
                if before in _SECRETS
                else _unknown(name, place)
            )
        before = name


def _unknown(name: str, place: str) -> str:
    guess = did_you_mean(name, PARAMETERS, _ELSEWHERE)
    return (
        f"{place} has no connection parameter {name!r};{guess} a setting of the server goes into "
        "options=-cname=value, with = as %3D in a URL, and a driver's own options are passed beside it"
    )


def named(name: str) -> str:
    """Name a parameter for messages, with the environment variable that may have set it."""
    variable = PARAMETERS[name]
    return f"{name} (or {variable})" if variable else name
