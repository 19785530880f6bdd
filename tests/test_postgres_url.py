"""Connection strings: what libpq makes of them, and what asyncpg is told."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shutil
import ssl
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
import servers
from helpers import thread

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.errors import InvalidConfigError, StoreError
from langgraph_harness_saver.stores.postgres_psycopg import conn_string_of
from langgraph_harness_saver.stores.postgres_strings import is_keyword_string, read_settings
from langgraph_harness_saver.stores.postgres_url import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Door

SPECIAL = "a b+c%d:e/f?g#h[i]j=k&l\\m'n\"o,p;q@r~ü€"

# Each is read as libpq reads it.
READ_ALIKE = [
    "",
    "postgresql://",
    "postgres://",
    "postgresql:///",
    "postgresql://localhost",
    "postgresql://localhost:5433",
    "postgresql://localhost/mydb",
    "postgresql://user@localhost",
    "postgresql://user:secret@localhost",
    "postgresql://user:@localhost",
    "postgresql://:secret@localhost",
    "postgresql://@localhost",
    "postgresql://@/",
    "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
    "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
    "postgresql://a,b:1/?",
    "postgresql://a,b,c/db",
    "postgresql:///mydb?host=localhost&port=5433",
    "postgresql://ignored:1/db?host=/tmp",
    "postgresql://[2001:db8::1234]/database",
    "postgresql://[2001:db8::1234]:5433,[::1]/database",
    "postgresql://[fe80::1%25eth0]:/d?",
    "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
    "postgresql://h?user=a",
    "postgresql://h/?user=&password=",
    "postgresql:///db?host=@abstract",
    "postgresql://h/db?host=a&host=b",
    "postgresql://h/db?user=a&",
    "postgresql://h/db?ssl=true",
    "postgresql://h/db?requiressl=1",
    "postgresql://h/db?requiressl=0",
    "postgresql://h/db?options=-c%20a%3Db+c",
    "postgresql://h/d#b?application_name=a#b",
    "postgresql://h/db?application_name=%20a%20",
    "postgresql://h/a+b%2Bc",
    "postgresql://u:p?q#r[s]:t@h/d",
    "postgresql://ü%C3%BC:€@h/ö",
    f"postgresql://{quote(SPECIAL, safe='')}:{quote(SPECIAL, safe='')}@h/{quote(SPECIAL, safe='')}",
    f"postgresql://h/?password={quote(SPECIAL, safe='')}",
    "postgresql://u@h/db?channel_binding=require&sslmode=require",
    "host=localhost dbname=x",
    "  host = localhost   dbname= x user =u\t\nport\n=\n1 ",
    "password='a b'",
    r"password='it\'s \\ fine'",
    r"password=it\'s\ \\\ fine",
    "user='x'dbname=y",
    "user='x'dbname=y\\",
    "user=",
    "user= ",
    "user=''",
    "dbname='a=b' password=c=d'e",
    "host=::1,/tmp port=1,2",
    "requiressl=1",
    "service=prod",
]

# libpq refuses them, and so do we.
REFUSED_ALIKE = [
    "localhost",
    "user='secret",
    "user= 'secret",
    "user secret",
    "host=a secret",
    "ssl=true",
    "colour=blue",
    "=secret",
    "postgresql://h/db?user=a%2",
    "postgresql://h/db?user=a%zz",
    "postgresql://h/db?user=a%00",
    "postgresql://h/db?password=a b",
    "postgresql://h/db?user",
    "postgresql://h/db?user=a&&password=secret",
    "postgresql://h/db?user=a=secret",
    "postgresql://h/db?colour=blue",
    "postgresql://h/db?ssl=false",
    "postgresql://h/db?connect_timeout=10&prepare_threshold=5",
    "postgresql://[::1/db",
    "postgresql://[]/db",
    "postgresql://[::1]x/db",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take away whatever this machine has for libpq; give the home directory."""
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PGSYSCONFDIR", str(home))
    return home


def kwargs(conn_string: str) -> dict[str, Any]:
    """Give what asyncpg is told first, without the context, which equals no other."""
    first = parse(conn_string).attempts()[0]
    return {**first, "ssl": tls_of(first["ssl"])}


def tls_of(context: Any) -> Any:
    """Describe a context, so that two of them compare."""
    if not isinstance(context, ssl.SSLContext):
        return context
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="h").do_handshake()
    return {
        "verify": (context.verify_mode, context.check_hostname, context.verify_flags),
        "versions": (context.minimum_version, context.maximum_version),
        "options": context.options,
        "trusted": sorted(context.get_ca_certs(binary_form=True)),
        "loaded": context.cert_store_stats(),
        "names its protocol": b"\x0apostgresql" in out.read(),
        "keys": context.keylog_filename,
    }


def contexts(conn_string: str) -> list[Any]:
    return [attempt["ssl"] for attempt in parse(conn_string).attempts()]


def understood(conn_string: str) -> Any:
    """Give the addresses and the parameters that asyncpg makes of the first attempt."""
    return asyncpg_parses(**parse(conn_string).attempts()[0])


def asyncpg_parses(dsn: str | None = None, **given: Any) -> Any:
    connect_utils = pytest.importorskip("asyncpg.connect_utils")
    names = inspect.signature(connect_utils._parse_connect_dsn_and_args).parameters
    return connect_utils._parse_connect_dsn_and_args(**{**dict.fromkeys(names), "dsn": dsn, **given})


def pem(folder: Path) -> Path:
    """Take some authority's certificate."""
    file = folder / "ca %+&.pem"
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    if not found:
        pytest.skip("this machine trusts nobody")
    file.write_text(ssl.DER_cert_to_PEM_cert(found[0]))
    return file


@pytest.mark.parametrize("conn_string", READ_ALIKE)
def test_reads_as_libpq_does(conn_string: str) -> None:
    conninfo = pytest.importorskip("psycopg.conninfo")
    assert read_settings(conn_string) == conninfo.conninfo_to_dict(conn_string)


@pytest.mark.parametrize("conn_string", REFUSED_ALIKE)
def test_refuses_what_libpq_refuses(conn_string: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse(conn_string)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("conn_string", REFUSED_ALIKE)
def test_libpq_refuses_them(conn_string: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    if " b" in conn_string and psycopg.pq.version() < 180000:
        pytest.skip("older ones take spaces")
    with pytest.raises(psycopg.ProgrammingError):
        psycopg.conninfo.conninfo_to_dict(conn_string)


SOCKETS = ["/run/postgresql", "/var/run/postgresql", "/tmp", "localhost"]


@pytest.mark.parametrize(
    ("conn_string", "hosts", "ports"),
    [
        ("postgresql://", SOCKETS, [5432] * 4),
        ("postgres://:5433", SOCKETS, [5433] * 4),
        ("host=", SOCKETS, [5432] * 4),
        ("postgresql://h", ["h"], [5432]),
        ("postgresql+asyncpg://h:1/db", ["h"], [1]),
        ("postgres+psycopg://h:1/db", ["h"], [1]),
        ("POSTGRESQL://h:1/db\n", ["h"], [1]),
        ("postgresql://a:1,b:2,c/db", ["a", "b", "c"], [1, 2, 5432]),
        ("postgresql://a,b:2/db", ["a", "b"], [5432, 2]),
        ("host=a,b port=7", ["a", "b"], [7, 7]),
        ("host=a,b port=7,", ["a", "b"], [7, 5432]),
        ("postgresql://a:1/?host=/my/dir", ["/my/dir"], [1]),
        ("postgresql://%2Fmy%2Fdir:7/x", ["/my/dir"], [7]),
        ("postgresql://[::1]:7,[fe80::1%25eth0]/x", ["::1", "fe80::1%eth0"], [7, 5432]),
        ("host=::1", ["::1"], [5432]),
        ("host=name hostaddr=10.0.0.1", ["10.0.0.1"], [5432]),
        ("hostaddr=10.0.0.1,::1", ["10.0.0.1", "::1"], [5432] * 2),
        ("host=a,b hostaddr=10.0.0.1,", ["10.0.0.1", "b"], [5432] * 2),
    ],
)
def test_servers(conn_string: str, hosts: list[str], ports: list[int]) -> None:
    found = kwargs(conn_string)
    assert (found["host"], found["port"]) == (hosts, ports)


@pytest.mark.parametrize(
    ("conn_string", "where"),
    [
        ("postgresql://u:secret@h:1/db", "h:1/db"),
        ("postgresql://a:1,[::1]/db", "a:1/db, [::1]:5432/db"),
        ("host=/my/dir port=7 password=secret", "/my/dir/.s.PGSQL.7"),
    ],
)
def test_where(conn_string: str, where: str) -> None:
    options = parse(conn_string)
    assert options.where == where
    assert "secret" not in repr(options)


def test_repr_hides_the_keys_password() -> None:
    assert "secret" not in repr(parse("postgresql://h/?sslpassword=secret"))


def test_login() -> None:
    encoded = quote(SPECIAL, safe="")
    found = kwargs(f"postgresql://{encoded}:{encoded}@h/{encoded}")
    assert [found[name] for name in ("user", "password", "database")] == [SPECIAL] * 3


def test_login_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kwargs("postgresql://h")
    assert found["database"] == found["user"]
    assert found["password"] == ""
    monkeypatch.setenv("LOGNAME", "somebody_else")
    assert kwargs("postgresql://h")["user"] == found["user"]
    assert kwargs("postgresql://u@h")["database"] == "u"


@pytest.mark.parametrize(
    ("conn_string", "hint"),
    [
        ("postgresql://u:xy@zzy@h/db", "%40"),
        ("postgresql://u:xy/zzy@h/db", "%2F"),
        ("postgresql://u:12/zzy@h/db", "%2F"),
        ("postgresql://u:xy:zzy/x", "%3A"),
        ("postgresql://h?user=xy@zzy", "%40"),
        ("postgresql://h:0/db", "65535"),
        ("postgresql://h:65536/db", "65535"),
        ("postgresql://h/db?database=x", "'dbname'"),
        ("postgresql://h/db?sslmod=require", "'sslmode'"),
        ("postgresql://h/db?search_path=x", "options=-cname=value"),
        ("postgresql://h/db?prepared_statement_cache_size=0", "driver"),
        ("postgresql://h/db?password=xy&zzy=x", "percent-encode"),
        ("host=h password=xy zzy=x", "quote"),
        ("host=a,b port=1,2,3", "one for each"),
        ("host=a,b hostaddr=10.0.0.1", "in both"),
        ("hostaddr=example.org", "host"),
        ("host=@abstract", "abstract"),
        ("client_encoding=latin1", "UTF8"),
        ("connect_timeout=soon", "whole number"),
        ("keepalives_idle=99999999999", "whole number"),
        ("keepalives=yes", "whole number"),
        ("service=prod", "PGSERVICEFILE"),
        ("sslmode=maybe", "verify-full"),
        ("sslmode=", "verify-full"),
        ("sslnegotiation=indirect", "direct"),
        ("sslnegotiation=direct", "sslmode=require"),
        ("channel_binding=yes", "prefer"),
        ("target_session_attrs=leader", "primary"),
        ("load_balance_hosts=yes", "random"),
        ("gsslib=other", "sspi"),
        ("host=h ssl_min_protocol_version=SSLv3", "TLSv1.2"),
        ("host=h sslmode=verify-full", "sslrootcert=system"),
        ("host=h sslmode=verify-ca", "sslrootcert=system"),
        ("host=h sslmode=require sslrootcert=/no/such", "PGSSLROOTCERT"),
        ("host=h sslmode=require sslrootcert=/no/such", "/no/such"),
        ("host=h sslmode=require sslcrl=/no/such", "PGSSLCRL"),
        ("host=h sslmode=require sslcert=/no/such sslkey=/nor/that", "/nor/that"),
        ("host=h ssl_max_protocol_version=TLSv1.1", "below"),
        ("host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "below"),
        ("host=h sslcert=/no/such", "PGSSLCERT"),
        ("host=h sslrootcert=system sslmode=require", "verify-full"),
        ("host=h hostaddr=10.0.0.1 sslrootcert=system", "hostaddr"),
        ("replication=database", "ordinary"),
        ("require_auth=scram-sha-256", "PGREQUIREAUTH"),
        ("requirepeer=postgres", "leave it out"),
        ("gssencmode=require", "leave it out"),
        ("gssdelegation=1", "leave it out"),
        ("sslcrldir=/tmp", "sslcrl"),
        ("sslcertmode=disable", "leave it out"),
        ("min_protocol_version=3.2", "3.0"),
        ("oauth_client_id=a oauth_client_secret=xyzzy", "OAuth"),
        ("scram_client_key=xyzzy", "password"),
        ("host=a\0b", "NUL"),
    ],
)
def test_refusals_say_what_to_do(conn_string: str, hint: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse(conn_string).attempts()
    assert hint in str(caught.value)
    assert "zzy" not in str(caught.value)


@pytest.mark.parametrize(
    "ignored",
    [
        *("replication=false", "require_auth=", "gssencmode=prefer", "gssencmode=disable", "gssdelegation=0"),
        *("sslcompression=1", "sslsni=1", "max_protocol_version=latest", "channel_binding=prefer", "tty="),
        *("client_encoding=utf8", "client_encoding=UTF-8", "client_encoding=auto", "sslcertmode=allow"),
    ],
)
def test_harmless_parameters_are_dropped(ignored: str, caplog: pytest.LogCaptureFixture) -> None:
    assert kwargs(f"host=h {ignored}") == kwargs("host=h")
    assert not caplog.records


@pytest.mark.parametrize("weaker", ["channel_binding=require", "sslsni=0"])
def test_what_protects_less_is_logged(weaker: str, caplog: pytest.LogCaptureFixture) -> None:
    assert kwargs(f"host=h {weaker}") == kwargs("host=h")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    ("conn_string", "settings"),
    [
        ("", {"application_name": "langgraph-harness-saver"}),
        ("application_name=a fallback_application_name=b", {"application_name": "a"}),
        ("fallback_application_name=b", {"application_name": "b"}),
        ("application_name=", {}),
        (
            "application_name=a options='-c search_path=x -c statement_timeout=5s'",
            {"application_name": "a", "options": "-c search_path=x -c statement_timeout=5s"},
        ),
        ("postgresql://h/?application_name=a+b&connect_timeout=3&keepalives=1", {"application_name": "a+b"}),
    ],
)
def test_server_settings(conn_string: str, settings: dict[str, str]) -> None:
    assert kwargs(conn_string)["server_settings"] == settings


@pytest.mark.parametrize(
    ("conn_string", "expected"),
    [
        ("", (None, True, None, None, None, None)),
        ("connect_timeout=10", (10, True, None, None, None, None)),
        ("connect_timeout=0 tcp_user_timeout=0 keepalives_idle=0", (None, True, None, None, None, None)),
        ("connect_timeout=-1", (None, True, None, None, None, None)),
        ("keepalives=0", (None, False, None, None, None, None)),
        (
            "keepalives=1 keepalives_idle=30 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=9000",
            (None, True, 30, 5, 3, 9000),
        ),
    ],
)
def test_times(conn_string: str, expected: tuple[Any, ...]) -> None:
    found = parse(conn_string)
    keepalives = (found.keepalives_idle, found.keepalives_interval, found.keepalives_count)
    assert (found.connect_timeout, found.keepalives, *keepalives, found.tcp_user_timeout) == expected


def test_socket_options() -> None:
    assert parse("").socket_options() == {}
    given = "keepalives_idle=30 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=9000"
    found = parse(given).socket_options()
    assert found.pop("TCP_KEEPIDLE", None) or found.pop("TCP_KEEPALIVE") == 30
    assert found == {"TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 9000}
    assert parse(f"{given} keepalives=0").socket_options() == {"TCP_USER_TIMEOUT": 9000}


def test_others_are_passed_on() -> None:
    found = kwargs("host=h target_session_attrs=read-write krbsrvname=pg gsslib=gssapi")
    assert (found["target_session_attrs"], found["krbsrvname"], found["gsslib"]) == (
        "read-write",
        "pg",
        "gssapi",
    )


def test_load_balancing_shuffles_hosts_with_their_ports() -> None:
    options = parse("host=a,b,c,d port=1,2,3,4 load_balance_hosts=random")
    found = [options.attempts()[0] for _ in range(50)]
    orders = {tuple(one["host"]) for one in found}
    assert len(orders) > 1
    assert {pair for one in found for pair in zip(one["host"], one["port"], strict=True)} == {
        *(("a", 1), ("b", 2), ("c", 3), ("d", 4))
    }


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = (
        "PGHOST=h PGPORT=7 PGUSER=u PGPASSWORD=p PGDATABASE=d PGAPPNAME=a PGOPTIONS=-cx=y "
        "PGCONNECT_TIMEOUT=3 PGSSLMODE=require PGTARGETSESSIONATTRS=primary PGCLIENTENCODING=latin1"
    )
    for name, _, value in (variable.partition("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    options = parse("postgresql://")
    assert (options.where, options.user, options.password) == ("h:7/d", "u", "p")
    assert options.server_settings == {"application_name": "a", "options": "-cx=y"}
    assert (options.connect_timeout, options.tls, options.others) == (
        *(3, {"sslmode": "require"}),
        {"target_session_attrs": "primary"},
    )
    given = parse("postgresql://v:q@i:8/e?application_name=b&sslmode=disable&connect_timeout=0")
    assert (given.where, given.user, given.password) == ("i:8/e", "v", "q")
    assert (given.server_settings["application_name"], given.connect_timeout) == ("b", None)
    assert contexts("postgresql://v:q@i:8/e?sslmode=disable") == [False]
    # As in libpq, what is given and empty isn't looked up: `a` has no port of its own.
    assert kwargs("postgresql://a,b:2/")["port"] == [5432, 2]


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256")
    with pytest.raises(InvalidConfigError, match="PGREQUIREAUTH"):
        parse("")


def test_old_requiressl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGREQUIRESSL", "1")
    assert parse("host=h").tls == {"sslmode": "require"}
    assert parse("host=h sslmode=prefer").tls == {"sslmode": "prefer"}


SERVICES = """
# a comment = x
[other]
host=wrong
[prod]
  host=db.example.org
port=7
password=50%(x)s%
# dbname=no
dbname=first
dbname=second

[prod]
user=wrong
"""


def test_service(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".pg_service.conf").write_text(SERVICES)
    found = parse("postgresql://u@/?service=prod")
    assert (found.where, found.user, found.password) == ("db.example.org:7/first", "u", "50%(x)s%")
    assert parse("service=prod port=8").where == "db.example.org:8/first"
    monkeypatch.setenv("PGSERVICE", "other")
    monkeypatch.setenv("PGHOST", "environment")
    assert parse("postgresql:///db").where == "wrong:5432/db"
    other = tmp_path / "services"
    other.write_text("[prod]\nhost=elsewhere\n")
    assert parse(f"service=prod servicefile={other}").servers[0].target == "elsewhere"
    monkeypatch.setenv("PGSERVICEFILE", str(other))
    assert parse("service=prod").servers[0].target == "elsewhere"


def test_system_wide_service(bare: Path) -> None:
    (bare / ".pg_service.conf").write_text(SERVICES)
    (bare / "pg_service.conf").write_text("[wide]\nhost=w\n")
    assert parse("service=wide").servers[0].target == "w"


@pytest.mark.parametrize("line", ["nonsense", "service=again", "colour=blue", "host =x"])
def test_unreadable_service(bare: Path, line: str) -> None:
    (bare / ".pg_service.conf").write_text(f"[prod]\n{line}\n")
    with pytest.raises(InvalidConfigError, match=r"pg_service\.conf"):
        parse("service=prod")


PASSWORDS = r"""# comment
a:7:d:u:plain
b:*:d:u:co\:lon\\back
*:5432:*:u:wild :ignored
localhost:*:d:*:local
/my/dir:*:d:*:socket
we\:ird:*:*:*:escaped
"""


@pytest.mark.parametrize(
    ("conn_string", "password"),
    [
        ("host=a port=7 dbname=d user=u", "plain"),
        ("host=a port=7 dbname=d user=u password=own", "own"),
        ("host=a port=7 dbname=d user=u password=''", "plain"),
        ("host=a port=7 dbname=other user=u", ""),
        ("host=b port=7 dbname=d user=u", "co:lon\\back"),
        ("host=b hostaddr=10.0.0.1 port=7 dbname=d user=u", "co:lon\\back"),
        ("host=c dbname=d user=u", "wild "),
        ("dbname=d user=v", "local"),
        ("host=/tmp dbname=d user=v", "local"),
        ("host=/my/dir dbname=d user=v", "socket"),
        ("host=we:ird dbname=d user=v", "escaped"),
    ],
)
def test_password_file(bare: Path, tmp_path: Path, conn_string: str, password: str) -> None:
    for file in (bare / ".pgpass", tmp_path / "another"):
        file.write_text(PASSWORDS)
        file.chmod(0o600)
    options = parse(conn_string)
    assert {attempt["password"] for attempt in options.attempts()} == {password}
    (bare / ".pgpass").unlink()
    assert kwargs(f"{conn_string} passfile='{tmp_path / 'another'}'")["password"] == password
    # It is read anew for each connection.
    own = password if "own" in password else ""
    assert options.attempts()[0]["password"] == own


def test_open_password_file_is_ignored(bare: Path, caplog: pytest.LogCaptureFixture) -> None:
    (bare / ".pgpass").write_text(PASSWORDS)
    (bare / ".pgpass").chmod(0o644)
    options = parse("host=a port=7 dbname=d user=u")
    assert [attempt["password"] for attempt in (*options.attempts(), *options.attempts())] == [""] * 4
    assert caplog.text.count("chmod 600") == 1


def test_one_password_for_all_hosts(bare: Path) -> None:
    (bare / ".pgpass").write_text("a:*:*:*:x\nb:*:*:*:y\nc:*:*:*:y\n")
    (bare / ".pgpass").chmod(0o600)
    assert kwargs("host=b,c")["password"] == "y"
    with pytest.raises(InvalidConfigError, match="password file"):
        parse("host=a,b").attempts()
    with pytest.raises(InvalidConfigError, match="password file"):
        parse("host=a,d").attempts()


MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


@pytest.mark.parametrize("mode", MODES)
def test_sslmode(tmp_path: Path, mode: str) -> None:
    first, *others = contexts(f"host=h sslmode={mode} sslrootcert='{pem(tmp_path)}'")
    context = next((one for one in (first, *others) if one), None)
    order = {"disable": [False], "allow": [False, True], "prefer": [True, False]}.get(mode, [True])
    assert [bool(one) for one in (first, *others)] == order
    verified = mode in ("require", "verify-ca", "verify-full")
    assert (context is not None and context.verify_mode == ssl.CERT_REQUIRED) == verified
    assert (context is not None and context.check_hostname) == (mode == "verify-full")


@pytest.mark.parametrize("own_files", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "query",
    [
        "",
        "&ssl_min_protocol_version=TLSv1.3",
        "&ssl_max_protocol_version=TLSv1.2",
        "&sslrootcert={ca}",
        "&sslrootcert={ca}&sslcrl={crl}",
        "&sslcert={certificate}&sslkey={key}",
        "&sslcert={certificate}&sslkey={locked}&sslpassword=xyz%20zy",
        "&sslcert={certificate}&sslkey={locked}&sslpassword=wrong",
        "&sslcert={certificate}&sslkey={locked}",
        "&sslcert={certificate}",
        "&sslcert={ca}&sslkey={key}",
        "&sslrootcert={key}",
        "&sslcrl={key}",
        "&sslrootcert=/no/such",
        "&sslcrl=/no/such",
    ],
)
def test_contexts_are_asyncpgs(papers: Papers, bare: Path, query: str, mode: str, own_files: bool) -> None:
    connect_utils = pytest.importorskip("asyncpg.connect_utils")
    if own_files:
        papers.install(bare)
    dsn = f"postgresql://u:p@h/db?sslmode={mode}" + query.format(**papers.quoted())
    try:
        expected = asyncpg_parses(dsn)[1].ssl
    except (OSError, connect_utils.exceptions.ClientConfigurationError):
        with pytest.raises(InvalidConfigError) as caught:
            contexts(dsn)
        assert "xyz" not in str(caught.value)
    else:
        context = next((one for one in contexts(dsn) if one), False)
        assert tls_of(context) == tls_of(expected)


def test_keys_are_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    found = kwargs("host=h")["ssl"]
    assert found["keys"] == str(tmp_path / "keys")
    assert found == tls_of(asyncpg_parses("postgresql://h")[1].ssl)
    monkeypatch.setenv("SSLKEYLOGFILE", "/no/such/folder")
    with pytest.raises(InvalidConfigError, match="SSLKEYLOGFILE"):
        kwargs("host=h")


def test_tls_defaults_to_prefer(bare: Path) -> None:
    assert [bool(one) for one in contexts("host=h")] == [True, False]
    assert kwargs("host=h")["ssl"]["names its protocol"]


def test_sockets_have_no_tls() -> None:
    assert contexts("host=/tmp sslmode=verify-full sslcert=/no/such") == [False]
    addresses, params = understood("host=/tmp sslmode=require")
    assert (addresses, params.ssl) == (["/tmp/.s.PGSQL.5432"], False)


def test_tls_versions() -> None:
    (context, _) = contexts("host=h ssl_min_protocol_version=tlsv1.2 ssl_max_protocol_version=TLSV1.3")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.maximum_version == ssl.TLSVersion.TLSv1_3


def test_direct_tls() -> None:
    _, params = understood("host=h sslmode=require sslnegotiation=direct")
    assert params.ssl_negotiation == "direct"


def test_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    (context,) = contexts("host=h sslrootcert=system ssl_min_protocol_version=TLSv1.3")
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    assert parse("host=h").tls == {"sslmode": "verify-full", "sslrootcert": "system"}


def test_unusable_certificate(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(InvalidConfigError, match=r"sslcert.*bad\.pem"):
        contexts(f"host=h sslrootcert=system sslcert='{tmp_path / 'bad.pem'}'")


def test_own_root_certificate(bare: Path, tmp_path: Path) -> None:
    (bare / ".postgresql").mkdir()
    root = pem(tmp_path).rename(bare / ".postgresql" / "root.crt")
    options = parse("host=h sslmode=verify-full")
    assert options.attempts()[0]["ssl"].verify_mode == ssl.CERT_REQUIRED
    root.unlink()
    with pytest.raises(InvalidConfigError, match="whom to trust"):
        options.attempts()


@pytest.mark.parametrize("conn_string", [text for text in READ_ALIKE if "@abstract" not in text])
def test_asyncpg_understands(conn_string: str, bare: Path) -> None:
    (bare / ".pg_service.conf").write_text("[prod]\nhost=h\n")
    options = parse(conn_string)
    addresses, params = understood(conn_string)
    expected = [
        f"{server.target}/.s.PGSQL.{server.port}" if server.is_socket else (server.target, server.port)
        for server in options.servers
    ]
    assert addresses == expected
    assert (params.user, params.password, params.database) == (
        options.user,
        options.password,
        options.database,
    )
    assert set(params.server_settings) <= {"application_name", "options"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=localhost dbname=x", True),
        (" service = prod", True),
        ("dbname=x", True),
        ("postgresql://h/?a=b", False),
        ("sqlite:///a?b=c", False),
        ("/a/b=c", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_is_keyword_string(text: str, expected: bool) -> None:
    assert is_keyword_string(text) is expected


@pytest.mark.parametrize(
    "thing", [None, "host=x", object(), {"conninfo": "x"}, SimpleNamespace(conninfo="host=x")]
)
def test_other_objects_have_no_conn_string(thing: object) -> None:
    assert conn_string_of(thing) is None


@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
@pytest.mark.parametrize("conninfo", ["host=a dbname=d", "postgresql://a/d", lambda: "host=a dbname=d"])
def test_pools(kind: str, conninfo: Any, caplog: pytest.LogCaptureFixture) -> None:
    psycopg_pool = pytest.importorskip("psycopg_pool")
    own = type("OwnPool", (getattr(psycopg_pool, kind),), {})
    passed = {"password": SPECIAL, "port": 7, "user": None, "autocommit": True, "prepare_threshold": 0}
    size = {"min_size": 0} if kind == "NullConnectionPool" else {}
    options = parse(conn_string_of(own(conninfo, kwargs=passed, open=False, **size)) or "")
    assert (options.where, options.password) == ("a:7/d", SPECIAL)
    assert ("from now on" in caplog.text) == callable(conninfo)


async def test_async_pools() -> None:
    psycopg_pool = pytest.importorskip("psycopg_pool")

    async def conninfo() -> str:
        return "host=a"

    pool = psycopg_pool.AsyncConnectionPool("host=a", kwargs={"host": "b"}, open=False)
    assert conn_string_of(pool) == "host='b'"
    assert conn_string_of(psycopg_pool.AsyncConnectionPool(open=False)) == ""
    with pytest.raises(InvalidConfigError, match="coroutine"):
        conn_string_of(psycopg_pool.AsyncConnectionPool(conninfo, open=False))


def test_psycopg2() -> None:
    kind = type("connection", (), {"__module__": "psycopg2.extensions"})
    connection = kind()
    found = {"host": "h", "dbname": "d", "user": "u", "tty": "", "options": "", "sslcompression": "0"}
    connection.info = SimpleNamespace(dsn_parameters=found, password="it's \\")
    options = parse(conn_string_of(connection) or "")
    assert (options.where, options.user, options.password) == ("h:5432/d", "u", "it's \\")


def test_psycopg_objects_that_lead_nowhere() -> None:
    assert conn_string_of(type("Cursor", (), {"__module__": "psycopg"})()) is None


async def ask(conn_string: str, question: str) -> Any:
    asyncpg = pytest.importorskip("asyncpg")
    *others, last = parse(conn_string).attempts()
    for attempt in others:
        with suppress(OSError, asyncpg.InvalidAuthorizationSpecificationError):
            return await ask_with(attempt, question)
    return await ask_with(last, question)


async def ask_with(attempt: dict[str, Any], question: str) -> Any:
    asyncpg = pytest.importorskip("asyncpg")
    connection = await asyncpg.connect(**attempt, timeout=10)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


WHO = "SELECT concat_ws(' ', current_user, current_database())"


async def test_connects(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    who = f"{parts.username} {parts.path[1:]}"
    query = "connect_timeout=10&keepalives_idle=5&channel_binding=prefer&gssencmode=prefer&sslsni=1"
    assert await ask(f"{postgres_url}?{query}", WHO) == who
    keywords = (
        f"host={parts.hostname} port={parts.port} dbname='{parts.path[1:]}' user={parts.username} "
        f"password='{parts.password}'"
    )
    assert await ask(keywords, WHO) == who
    assert (
        await ask(keywords.replace(f"host={parts.hostname}", "host=nowhere.invalid hostaddr=127.0.0.1"), WHO)
        == who
    )
    # The first one isn't there.
    several = postgres_url.replace(
        f"{parts.hostname}:{parts.port}", f"127.0.0.1:1,{parts.hostname}:{parts.port}"
    )
    assert await ask(several, WHO) == who


async def test_password_file_logs_in(postgres_url: str, bare: Path) -> None:
    parts = urlsplit(postgres_url)
    (bare / ".pgpass").write_text(f"*:{parts.port}:*:{parts.username}:{parts.password}\n")
    (bare / ".pgpass").chmod(0o600)
    url = postgres_url.replace(f":{parts.password}@", "@")
    assert await ask(url, WHO) == f"{parts.username} {parts.path[1:]}"


async def test_socket(postgres_server: Any) -> None:
    folder = getattr(postgres_server, "socket_dir", None)
    if folder is None:
        pytest.skip("this server's sockets are its own affair")
    parts = urlsplit(postgres_server.url())
    host = quote(str(folder), safe="")
    url = f"postgresql://{parts.username}@{host}:{parts.port}{parts.path}?sslmode=require"
    assert await ask(url, WHO) == f"{parts.username} {parts.path[1:]}"


async def test_settings_reach_the_server(postgres_url: str) -> None:
    assert await ask(postgres_url, "SHOW application_name") == "langgraph-harness-saver"
    options = quote(r'-c search_path="a\ b" -cstatement_timeout=1234', safe="")
    given = f"{postgres_url}?options={options}&application_name=c%20d+e"
    question = (
        "SELECT concat_ws('|', current_setting('application_name'), current_setting('statement_timeout'), "
    )
    assert await ask(given, question + "current_setting('search_path'))") == 'c d+e|1234ms|"a b"'


def test_psycopg_connections(postgres_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    parts = urlsplit(postgres_url)
    with psycopg.connect(postgres_url, application_name="me", connect_timeout=7) as connection:
        options = parse(conn_string_of(connection) or "")
    assert options.where == f"{parts.hostname}:{parts.port}{parts.path}"
    assert (options.user, options.password) == (parts.username, parts.password)
    assert (options.server_settings["application_name"], options.connect_timeout) == ("me", 7)
    with pytest.raises(InvalidConfigError, match="closed"):
        conn_string_of(connection)


async def test_async_psycopg_connections(postgres_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        found = conn_string_of(connection) or ""
    assert "hostaddr" not in found
    assert await ask(found, "SELECT 1") == 1


def test_deprecated_tls_is_the_users_choice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert contexts("host=h ssl_min_protocol_version=TLSv1")[0].minimum_version == ssl.TLSVersion.TLSv1


# --- event loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["u:p@", "u@", ""])
@pytest.mark.parametrize(
    "query", ["", "sslmode=disable", "sslmode=verify-full&sslrootcert={ca}&sslcrl={crl}"]
)
async def test_a_store_is_made_on_an_event_loop(papers: Papers, bare: Path, login: str, query: str) -> None:
    pytest.importorskip("asyncpg")
    blockbuster = pytest.importorskip("blockbuster", reason="pip install blockbuster")
    papers.install(bare)
    (bare / ".pgpass").write_text(PASSWORDS)
    (bare / ".pgpass").chmod(0o600)
    url = f"postgresql://{login}127.0.0.1:5432/db?{query.format(**papers.quoted())}"
    with blockbuster.blockbuster_ctx():
        with pytest.raises(blockbuster.BlockingError):
            os.stat(bare)  # to see that the guard is on
        HarnessCheckpointer.from_conn_string(url)


@pytest.mark.parametrize("login", ["password", "password file", "trust"])
@pytest.mark.parametrize("mode", MODES)
async def test_asyncpg_reads_no_file(
    tls_server: Any, papers: Papers, bare: Path, login: str, mode: str
) -> None:
    blockbuster = pytest.importorskip("blockbuster", reason="pip install blockbuster")
    papers.install(bare)
    (bare / ".pg_service.conf").write_text("[x]\nhost=h\n")
    parts = urlsplit(tls_server.url())
    (bare / ".pgpass").write_text(f"*:{parts.port}:*:{parts.username}:{parts.password}\n")
    (bare / ".pgpass").chmod(0o600)
    secret = f":{parts.password}" if login == "password" else ""
    place = quote(str(tls_server.socket_dir), safe="") if login == "trust" else "localhost"
    options = parse(f"postgresql://{parts.username}{secret}@{place}:{parts.port}/postgres?sslmode={mode}")
    attempts = await asyncio.to_thread(options.attempts)
    assert len(attempts) == (2 if mode in ("allow", "prefer") and login != "trust" else 1)
    for attempt in attempts:
        with blockbuster.blockbuster_ctx():
            assert await ask_with(attempt, "SELECT 1") == 1


# --- TLS ------------------------------------------------------------------------------------------------

TLS = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = %s"


class Papers(NamedTuple):
    """Certificates and keys: an authority's, a server's for localhost, and another authority's."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Papers:
        if shutil.which("openssl") is None:
            pytest.skip("no program openssl here")
        papers = cls(folder)
        papers.authority("ca")
        papers.authority("stranger")
        papers.certificate("server", "127.0.0.2", serial=2)
        papers.certificate("revoked", "127.0.0.2", serial=3)
        papers.certificate("certificate", "client", serial=4)
        (folder / "key").write_bytes((folder / "certificate.key").read_bytes())
        papers.openssl("rsa", "-aes256", "-passout", "pass:xyz zy", "-in", "key", "-out", "locked")
        (folder / "index").write_text("")
        (folder / "number").write_text("01\n")
        (folder / "config").write_text(
            "[ca]\ndefault_ca = a\n[a]\ndatabase = index\ncrlnumber = number\ndefault_md = sha256\n"
        )
        signed = ("-config", "config", "-keyfile", "ca.key", "-cert", "ca")
        papers.openssl("ca", *signed, "-revoke", "revoked")
        papers.openssl("ca", *signed, "-gencrl", "-crldays", "2", "-out", "crl")
        return papers

    def authority(self, name: str) -> None:
        extensions = (
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=keyCertSign,cRLSign",
        )
        self.request(name, name, "-x509", "-days", "2", *extensions)

    def certificate(self, name: str, subject: str, serial: int) -> None:
        """Sign one that is good for localhost, which is not in its subject."""
        self.request(f"{name}.csr", subject, key=name)
        (self.folder / "extensions").write_text("subjectAltName = DNS:localhost\n")
        signed = ("-CA", "ca", "-CAkey", "ca.key", "-days", "2", "-extfile", "extensions")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-out", name, "-set_serial", str(serial), *signed)

    def request(self, name: str, subject: str, *more: str, key: str = "") -> None:
        keys = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{key or name}.key")
        self.openssl("req", "-new", "-sha256", "-subj", f"/CN={subject}", *keys, "-out", name, *more)

    def openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def quoted(self) -> dict[str, str]:
        return {file.name: quote(str(file), safe="") for file in self.folder.iterdir()}

    def install(self, home: Path) -> None:
        """Put them where a user has them."""
        folder = home / ".postgresql"
        folder.mkdir()
        names = {
            "root.crt": "ca",
            "root.crl": "crl",
            "postgresql.crt": "certificate",
            "postgresql.key": "key",
        }
        for name, source in names.items():
            shutil.copy(self.folder / source, folder / name)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers.make(tmp_path_factory.mktemp("papers %+&"))


TLS_SETTINGS = {
    "ssl": "on",
    "ssl_cert_file": "a",
    "ssl_key_file": "k",
    "ssl_min_protocol_version": "TLSv1.3",
}


class TlsServer(servers.PostgresServer):
    """Has a certificate; its user "careful" may log in with TLS only."""

    def __init__(self, papers: Papers, certificate: str = "server") -> None:
        super().__init__("15", settings=TLS_SETTINGS)
        self.papers, self.certificate = papers.folder, certificate

    def configure(self) -> None:
        super().configure()
        for source, name in ((self.certificate, "a"), (f"{self.certificate}.key", "k")):
            shutil.copy(self.papers / source, self.data / name)
            (self.data / name).chmod(0o600)
            servers.give(self.data / name)
        access = self.data / "pg_hba.conf"
        if "careful" not in access.read_text():
            access.write_text(f"hostnossl all careful all reject\n{access.read_text()}")


def started(papers: Papers, certificate: str) -> Iterator[TlsServer]:
    servers.skip_without("15")
    with TlsServer(papers, certificate) as server:
        server.execute("CREATE ROLE careful SUPERUSER LOGIN PASSWORD 'careful'")
        yield server


@pytest.fixture(scope="module")
def tls_server(papers: Papers) -> Iterator[TlsServer]:
    yield from started(papers, "server")


@pytest.fixture(scope="module")
def revoked_server(papers: Papers) -> Iterator[TlsServer]:
    yield from started(papers, "revoked")


def uses_tls(door: Door, server: Any, url: str) -> bool:
    """Set a saver up, and look at its connections."""
    pytest.importorskip("asyncpg")
    name = servers.new_name()
    saver = HarnessCheckpointer.from_conn_string(f"{url}&application_name={name}", retry_seconds=10)
    try:
        door.call(saver, "setup")
        # That leaves no connection behind, and this one does.
        assert door.call(saver, "get_tuple", thread("t")) is None
        ((found,),) = server.execute(TLS, (name,))
        return found
    finally:
        door.call(saver, "close")


def url_of(server: Any, host: str, query: str, user: str = "") -> str:
    parts = urlsplit(server.url())
    login = f"{user}:{user}" if user else f"{parts.username}:{parts.password}"
    return f"postgresql://{login}@{host}:{parts.port}{parts.path}?{query}"


@pytest.mark.parametrize(
    ("host", "query", "user", "tls"),
    [
        ("127.0.0.1", "sslmode=disable", "", False),
        ("127.0.0.1", "sslmode=allow", "", False),
        ("127.0.0.1", "sslmode=allow", "careful", True),
        ("127.0.0.1", "sslmode=allow&sslrootcert={stranger}", "careful", True),
        ("127.0.0.1", "sslmode=prefer", "careful", True),
        # Without a mode it is prefer.
        ("127.0.0.1", "connect_timeout=9", "", True),
        ("127.0.0.1", "sslmode=prefer&sslrootcert={stranger}", "", True),
        # This server knows TLS 1.3 only: the attempt with TLS fails.
        ("127.0.0.1", "sslmode=prefer&ssl_max_protocol_version=TLSv1.2", "", False),
        ("127.0.0.1", "sslmode=require", "", True),
        ("127.0.0.1", "sslmode=require&sslrootcert={ca}", "", True),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}", "", True),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}&sslcrl={crl}", "", True),
        ("localhost", "sslmode=verify-full&sslrootcert={ca}", "", True),
        ("localhost", "sslmode=verify-full&sslrootcert={ca}&sslcert={certificate}&sslkey={key}", "", True),
    ],
)
def test_tls(
    door: Door, tls_server: Any, papers: Papers, host: str, query: str, user: str, tls: bool
) -> None:
    assert uses_tls(door, tls_server, url_of(tls_server, host, query.format(**papers.quoted()), user)) is tls


@pytest.mark.parametrize("mode", ["allow", "prefer"])
def test_servers_without_tls(door: Door, postgres_server: Any, mode: str) -> None:
    skip_with_tls(postgres_server)
    assert uses_tls(door, postgres_server, f"{postgres_server.url()}?sslmode={mode}") is False


def skip_with_tls(server: Any) -> None:
    if server.execute("SHOW ssl") == [("on",)]:
        pytest.skip("this server has TLS")


def said(door: Door, url: str, retry_seconds: float = 30) -> str:
    """Give what a saver says that can't be set up, which is to be soon."""
    pytest.importorskip("asyncpg")
    saver = HarnessCheckpointer.from_conn_string(url, retry_seconds=retry_seconds)
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        door.call(saver, "setup")
    assert time.monotonic() - began < 5
    door.call(saver, "close")
    return str(caught.value)


@pytest.mark.parametrize(
    ("host", "query"),
    [
        ("localhost", "sslmode=require&sslrootcert={stranger}"),
        ("localhost", "sslmode=verify-ca&sslrootcert={stranger}"),
        ("localhost", "sslmode=verify-full&sslrootcert={stranger}"),
        ("localhost", "sslmode=verify-full&sslrootcert=system"),
        ("127.0.0.1", "sslmode=verify-full&sslrootcert={ca}"),
    ],
)
def test_other_certificates_are_refused(
    door: Door, tls_server: Any, papers: Papers, host: str, query: str
) -> None:
    text = said(door, url_of(tls_server, host, query.format(**papers.quoted())))
    assert "certificate verify failed" in text
    assert "sslrootcert" in text


def test_revoked_certificates_are_refused(door: Door, revoked_server: Any, papers: Papers) -> None:
    query = "sslmode=verify-full&sslrootcert={ca}".format(**papers.quoted())
    url = url_of(revoked_server, "localhost", query)
    assert uses_tls(door, revoked_server, url)
    assert "revoked" in said(door, f"{url}&sslcrl={papers.quoted()['crl']}")


def test_required_tls_is_not_there(door: Door, postgres_server: Any) -> None:
    skip_with_tls(postgres_server)
    # As yet this is taken for a server that is away for a moment.
    assert "rejected SSL upgrade" in said(door, f"{postgres_server.url()}?sslmode=require", 1)


def test_missing_certificates_are_named(door: Door, tls_server: Any) -> None:
    pytest.importorskip("asyncpg")
    url = url_of(tls_server, "localhost", "sslmode=verify-full&sslrootcert=/no/such")
    saver = HarnessCheckpointer.from_conn_string(url)
    with pytest.raises(InvalidConfigError, match=r"PGSSLROOTCERT.*/no/such"):
        door.call(saver, "setup")
    door.call(saver, "close")


def test_refused_without_tls(door: Door, tls_server: Any) -> None:
    text = said(door, url_of(tls_server, "localhost", "sslmode=disable", "careful"))
    assert "pg_hba" in text
