"""What the server answers, and to whom."""

import json
import re

import pytest

from jaxtune.errors import UserError
from jaxtune.evaluation.votes import server, voting

HOME = "http://127.0.0.1:8765"


class Client:
  """A browser without a page: it keeps the cookie and the CSRF token of the first answer."""

  def __init__(self, opened):
    self.flask = server.make(opened, "127.0.0.1").test_client()
    page = self.flask.get(f"/?token={opened.token}", base_url=HOME)
    self.cookie = page.headers["Set-Cookie"]
    self.csrf = re.search(r'name="csrf" content="(\w+)"', page.text)[1]

  def get(self, path, **headers):
    return self.flask.get(path, base_url=HOME, headers=headers)

  def post(self, path, body, **headers):
    headers = {"X-CSRF-Token": self.csrf, "Origin": HOME} | headers
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return self.flask.post(f"/api/{path}", base_url=HOME, data=data, headers=headers)


@pytest.fixture
def client(opened):
  return Client(opened)


def test_a_rater_joins_votes_and_takes_it_back(client, opened):
  joined = client.post("join", {"rater": "  Zoë   O'Neil "}).json
  assert joined["rater"] == "Zoë O'Neil" and joined["done"] == 0
  asked = {"rater": joined["rater"], "pair": joined["pair"]["number"]}
  voted = client.post("vote", asked | {"choice": "left", "reason": " short "}).json
  assert voted["done"] == 1 and voted["pair"]["number"] != asked["pair"]
  (vote,) = voting.votes(opened)
  assert vote.reason == "short"
  assert client.get("/api/next?rater=Zo%C3%AB+O'Neil").json == voted
  assert client.get("/api/results").json["names"] == ["runs/one", "runs/two"]
  assert client.post("undo", asked).json["done"] == 0


def test_nothing_is_answered_without_the_token(client, opened):
  stranger = server.make(opened, "127.0.0.1").test_client()
  for path in ("/", "/?token=guess", "/results", "/page/judge.js", "/api/results"):
    answer = stranger.get(path, base_url=HOME)
    assert answer.status_code == 403 and "secret token" in answer.text
  assert "HttpOnly" in client.cookie and "SameSite=Strict" in client.cookie
  assert client.get("/page/judge.js").status_code == 200


@pytest.mark.parametrize("host", ["localhost:9000", "10.1.2.3", "[::1]:8765", "LOCALHOST"])
def test_names_that_cannot_be_another_site_s_are_answered(client, opened, host):
  assert client.get(f"/?token={opened.token}", Host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "127.0.0.1.evil.com:8765", "[::1", "", "a@localhost"])
def test_a_foreign_name_is_refused(client, opened, host):
  assert client.get(f"/?token={opened.token}", Host=host).status_code == 403


@pytest.mark.parametrize(
  "headers",
  [
    {"X-CSRF-Token": ""},
    {"X-CSRF-Token": "0" * 64},
    {"Origin": "http://evil.com"},
    {"Origin": "null"},
  ],
)
def test_a_post_of_another_site_is_refused(client, opened, headers):
  assert client.post("join", {"rater": "x"}, **headers).status_code == 403
  assert opened.connection.execute("SELECT * FROM raters").fetchall() == []


VOTE = {"rater": "x", "pair": 1, "choice": "tie", "reason": ""}


@pytest.mark.parametrize(
  "path, body, status, said",
  [
    ("vote", VOTE | {"rater": "nobody"}, 404, "there is no rater 'nobody'"),
    ("vote", VOTE | {"pair": 99}, 404, "there is no pair 99"),
    ("vote", VOTE | {"pair": 10**30}, 404, "there is no pair"),
    ("vote", VOTE | {"pair": "1"}, 400, "pair is '1'"),
    ("vote", VOTE | {"choice": "a"}, 400, "choice is 'a'"),
    ("vote", VOTE | {"reason": "x" * 1001}, 400, "reason is"),
    ("vote", {"rater": "x"}, 400, "is missing"),
    ("vote", "{", 400, "malformed JSON"),
    ("vote", b"\xff", 400, "UTF-8"),
    ("vote", "x" * 20_000, 413, "too large"),
    ("undo", {"rater": "nobody", "pair": 1}, 404, "there is no rater"),
    ("join", {"rater": " "}, 400, "empty"),
    ("join", {"rater": "x" * 61}, 400, "rater is"),
    ("join", {"rater": "a\u202eb"}, 400, "cannot be seen"),
  ],
)
def test_mistakes_have_a_status_and_one_line(client, opened, path, body, status, said):
  client.post("join", {"rater": "x"})
  answer = client.post(path, body)
  assert answer.status_code == status and said in answer.json["error"]
  assert "\n" not in answer.json["error"] and voting.votes(opened) == []


def test_files_beside_the_page_are_no_page(client):
  for path in ("/page/judge.html", "/page/..%2fserver.py", "/page/nothing.js", "/api/nothing"):
    assert client.get(path).status_code == 404
  assert client.get("/api/vote").status_code == 405


def test_no_page_runs_what_is_not_ours(client):
  for path in ("/", "/results", "/page/page.css", "/api/results", "/nothing"):
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ") and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
  for page in ("/", "/results"):
    html = client.get(page).text
    assert not re.search(
      r"https?://|<style| style=| on\w+=|<script(?! type=.module. src=./page/)", html
    )


def test_ports_in_use_and_foreign_addresses_are_refused(opened):
  listening = server.listen(opened, "127.0.0.1", 0)
  port = int(listening.effective_port)
  with pytest.raises(UserError, match=f"port {port} is in use .* --port {port + 1}"):
    server.listen(opened, "127.0.0.1", port)
  listening.close()
  with pytest.raises(UserError, match="cannot listen on 192.0.2.1"):
    server.listen(opened, "192.0.2.1", 0)


def test_loopback_is_told_from_the_network():
  assert all(map(server.is_loopback, ("127.0.0.1", "localhost", "::1", "127.3.2.1")))
  assert not any(map(server.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
