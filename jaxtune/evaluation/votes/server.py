"""The server of the page on which people choose between two answers.

Every request needs the secret token: the address that is opened first holds it, and then a cookie
that no script can read and that no other site's request carries. A request that changes something
also needs a header that only our page can send. The name by which the server is asked is checked,
as a foreign site could otherwise point its own name at this machine (DNS rebinding).
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import re
import socket
import sqlite3
import unicodedata
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flask
import waitress
from annotated_types import MaxLen, MinLen
from typing_extensions import TypedDict
from werkzeug.exceptions import HTTPException

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.evaluation.votes import agreement, voting
from jaxtune.evaluation.votes.store import Store

PAGE = Path(__file__).parent / "page"
LARGEST = 16 * 2**10  # bytes of a request's body
LONGEST_NAME, LONGEST_REASON = 60, 1000  # characters
_HOST = re.compile(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(:\d+)?")
_HEADERS = {
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'; require-trusted-types-for 'script'",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
}


class Joining(TypedDict):
  """The body of /api/join."""

  __pydantic_config__ = schema.STRICT
  rater: Annotated[str, MinLen(1), MaxLen(LONGEST_NAME)]


class Undoing(Joining):
  """The body of /api/undo."""

  __pydantic_config__ = schema.STRICT
  pair: int


class Voting(Undoing):
  """The body of /api/vote."""

  __pydantic_config__ = schema.STRICT
  choice: voting.Choice
  reason: Annotated[str, MaxLen(LONGEST_REASON)]


def make(store: Store, host: str) -> flask.Flask:
  """Makes the WSGI application.

  Args:
    host: the address at which it listens.
  """
  app = flask.Flask(__name__, template_folder=str(PAGE), static_folder=None)
  app.config["MAX_CONTENT_LENGTH"] = LARGEST
  names = {host.lower(), "localhost", socket.gethostname().lower()}
  cookie = f"jaxtune-{_sign(store.token, 'cookie')[:8]}"  # cookies are shared by all ports
  app.before_request(partial(_guard, store.token, cookie, names))
  app.after_request(_add_headers)
  app.register_error_handler(UserError, lambda error: _refuse(str(error), _status(error)))
  app.register_error_handler(sqlite3.Error, _unsaved)
  app.register_error_handler(HTTPException, lambda error: _refuse(_words(error), error.code or 500))
  for path, name in (("/", "judge.html"), ("/results", "results.html")):
    app.add_url_rule(path, name, partial(_page, store.token, cookie, name))
  app.add_url_rule("/page/<name>", "file", _file)
  for name, answer in _API.items():
    method = "GET" if name in ("next", "results") else "POST"
    app.add_url_rule(f"/api/{name}", name, partial(answer, store), methods=[method])
  return app


def listen(store: Store, host: str, port: int) -> Any:
  """Returns a server whose `run` answers requests until it is interrupted.

  Its `effective_port` is the port, as a text, also where 0 was asked for.

  Raises:
    UserError: where the address is in use, or none of this machine.
  """
  try:
    # A name may stand for several addresses, whose ports would differ where 0 was asked for.
    (*_, (first, *_)), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return waitress.create_server(
      make(store, host), host=first, port=port, threads=8, ident=None,
      max_request_body_size=LARGEST, max_request_header_size=LARGEST,
    )  # fmt: skip
  except (OSError, ValueError) as error:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
      raise UserError(
        f"port {port} is in use by another program: give another one, such as --port {port + 1}, "
        "or 0 for any that is free"
      ) from error
    reason = getattr(error, "strerror", None) or error
    raise UserError(
      f"cannot listen on {host} port {port}: {reason}; expected an address of this machine, such "
      "as --host 127.0.0.1"
    ) from error


def address(store: Store, host: str, port: int) -> str:
  """Returns the address to open, with the secret token."""
  everywhere = host in ("0.0.0.0", "::")
  name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
  return f"http://{name}:{port}/?token={store.token}"


def is_loopback(host: str) -> bool:
  """Says whether only this machine itself reaches an address."""
  return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _guard(token: str, cookie: str, names: set[str]) -> flask.Response | None:
  """Refuses requests by a foreign name, without the token, and from other sites."""
  request = flask.request
  given = request.headers.get("Host", "")
  host = _host(given)
  if host not in names and not _is_ip(host):
    return _refuse(f"this server is not called {schema.shown(given)}", 403)
  secrets = [request.args.get("token", ""), request.cookies.get(cookie, "")]
  if not any(_equal(secret, token) for secret in secrets):
    return _refuse(
      "the secret token is missing or wrong: open the whole address that the terminal shows", 403
    )
  if request.method in ("GET", "HEAD"):
    return None
  origin = request.headers.get("Origin")
  if origin is not None and origin.partition("://")[2] != given:
    return _refuse("this request comes from another site", 403)
  if not _equal(request.headers.get("X-CSRF-Token", ""), _sign(token, "csrf")):
    return _refuse("the request has no valid CSRF token: load the page again", 403)
  return None


def _page(token: str, cookie: str, name: str) -> flask.Response:
  """Answers with a page itself, and no redirection, on which a strict cookie would be lost."""
  response = flask.make_response(flask.render_template(name, csrf=_sign(token, "csrf")))
  response.set_cookie(cookie, token, httponly=True, samesite="Strict")
  return response


def _file(name: str) -> flask.Response:
  if Path(name).suffix not in (".css", ".js", ".svg"):
    flask.abort(404)
  return flask.send_from_directory(PAGE, name)


def _join(store: Store) -> dict[str, Any]:
  rater = _name(_body(Joining)["rater"])
  voting.join(store, rater)
  return voting.state(store, rater) | {"rater": rater}


def _next(store: Store) -> dict[str, Any]:
  return voting.state(store, flask.request.args.get("rater", ""))


def _vote(store: Store) -> dict[str, Any]:
  body = _body(Voting)
  voting.vote(store, body["rater"], body["pair"], body["choice"], body["reason"].strip())
  return voting.state(store, body["rater"])


def _undo(store: Store) -> dict[str, Any]:
  body = _body(Undoing)
  voting.undo(store, body["rater"], body["pair"])
  return voting.state(store, body["rater"])


def _results(store: Store) -> dict[str, Any]:
  project = store.project
  found = agreement.summarise(voting.votes(store), project.names, len(project.pairs))
  return found | {"skipped": project.skipped}


_API = {"join": _join, "next": _next, "vote": _vote, "undo": _undo, "results": _results}


def _body(expected: Any) -> Any:
  """Returns the body of a request, checked."""
  content = schema.parse_json(flask.request.get_data(), "the request")
  schema.check("the request", content, expected)
  return content


def _name(given: str) -> str:
  """Returns a rater's name in one form: equal names are the same rater."""
  name = " ".join(unicodedata.normalize("NFC", given).split())
  if not name or not name.isprintable():
    raise UserError("the name is empty or has characters that cannot be seen: expected a name")
  return name


def _refuse(message: str, status: int) -> flask.Response:
  """Answers a program with an object, and a person who opens a page with a line of text."""
  if flask.request.path.startswith("/api/"):
    response = flask.jsonify(error=message)
  else:
    response = flask.Response(f"{message}\n", mimetype="text/plain")
  response.status_code = status
  return _add_headers(response)


def _status(error: UserError) -> int:
  return error.status if isinstance(error, voting.Refused) else 400


def _words(error: HTTPException) -> str:
  words = {404: "there is no such page", 405: "this page takes no such request"}
  words[413] = f"the request is too large: expected at most {LARGEST} bytes"
  return words.get(error.code or 500, error.name.lower())


def _unsaved(error: sqlite3.Error) -> flask.Response:
  return _refuse(f"the database cannot be read or written: {error}; nothing was saved", 503)


def _add_headers(response: flask.Response) -> flask.Response:
  response.headers.update(_HEADERS)
  return response


def _sign(token: str, purpose: str) -> str:
  return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _equal(given: str, secret: str) -> bool:
  return hmac.compare_digest(given.encode(errors="replace"), secret.encode())


def _host(header: str) -> str:
  """Returns the name in a Host header, in lower case and without the port; "" if it has none."""
  found = _HOST.fullmatch(header.lower())
  return (found["six"] or found["name"]) if found else ""


def _is_ip(host: str) -> bool:
  """Says whether a host is an address in numbers, which no foreign name server can change."""
  try:
    ipaddress.ip_address(host)
  except ValueError:
    return False
  return True
