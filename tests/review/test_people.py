"""Users, their passwords and tries, sessions and leases."""

from __future__ import annotations

from pathlib import Path

import pytest

from review.errors import ReviewError
from review.leases import Leases
from review.sessions import MOST_SESSIONS, SESSION_S, Sessions
from review.users import Attempts, Users, parse_white_users


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_users_of_the_flag_and_of_a_file(tmp_path: Path) -> None:
    assert parse_white_users("") == {}
    assert parse_white_users("ann:pw, bo:p:w") == {"ann": "pw", "bo": "p:w"}
    (tmp_path / "users").write_text("\ufeffann:a,b\n\n小明: 密码\n", encoding="utf-8")
    assert parse_white_users(f"@{tmp_path / 'users'}") == {"ann": "a,b", "小明": " 密码"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann", '--white-users: user "ann" has no password; write ann:PASSWORD'),
        ("ann:x,bo:", '--white-users: user "bo" has no password'),
        (":secret", "--white-users: user 1 has no name"),
        ("ann:x,", "--white-users: user 2 has no name"),
        ("ann:secret,ann:other", '--white-users: user "ann" is there twice'),
        ("@nowhere", "--white-users @nowhere: cannot read it: No such file"),
    ],
)
def test_mistakes_in_users_are_one_sentence_without_a_password(text: str, message: str) -> None:
    with pytest.raises(ReviewError) as caught:
        parse_white_users(text)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("\n", encoding="utf-8")
    with pytest.raises(ReviewError, match="no user in it"):
        parse_white_users(f"@{tmp_path / 'users'}")


def test_passwords_are_kept_as_salted_hashes() -> None:
    users = Users({"ann": "the password", "bo": "the password"})
    assert users.verify("ann", "the password") and users.verify("bo", "the password")
    assert not users.verify("ann", "another") and not users.verify("eve", "the password") and not users.verify("", "")
    kept = users._hashes["ann"], users._hashes["bo"]
    assert b"the password" not in b"".join(kept[0])
    assert kept[0][0] != kept[1][0] and kept[0][1] != kept[1][1]  # another salt, another hash


def test_ten_tries_a_minute_by_each_key() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(10):
        assert attempts.wait_s("ann", "1.2.3.4") == 0
        clock.now += 1
    assert attempts.wait_s("ann", "5.6.7.8") == pytest.approx(50)
    assert attempts.wait_s("bo", "1.2.3.4") == pytest.approx(50)
    assert attempts.wait_s("bo", "5.6.7.8") == 0
    clock.now += 50.5  # the first try is over a minute old
    assert attempts.wait_s("ann", "5.6.7.8") == 0
    assert attempts.wait_s("ann", "5.6.7.8") > 0


def test_sessions_are_found_by_their_cookie_and_end() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie, session = sessions.begin("ann", None)
    assert sessions.find(cookie) is session and sessions.find("") is None and sessions.find(cookie[:-1]) is None
    assert session.has_token(session.token) and not session.has_token("") and not session.has_token(cookie)
    clock.now += SESSION_S - 1
    assert sessions.find(cookie) is session  # used, so it goes on
    clock.now += SESSION_S + 1
    assert sessions.find(cookie) is None
    cookie, _ = sessions.begin("ann", None)
    sessions.end(cookie)
    assert sessions.find(cookie) is None


def test_there_are_not_more_sessions_than_the_most() -> None:
    sessions = Sessions()
    first, _ = sessions.begin("", None)
    second, _ = sessions.begin("", None)
    sessions.find(first)
    for _ in range(MOST_SESSIONS - 1):
        sessions.begin("", None)
    assert sessions.find(first) and not sessions.find(second)


def test_a_record_is_one_person_s_for_ten_minutes() -> None:
    clock = Clock()
    leases = Leases(clock)
    assert leases.look([1, 2, 3], "ann") == {}
    assert leases.look([3, 4], "bo") == {3: "ann"}
    assert leases.others([1, 4], "cy") == {1: "ann", 4: "bo"} and leases.held_from("ann") == {4}
    assert leases.look([1], "ann") == {}  # 2 and 3 are given up
    assert leases.take([2, 3], "bo") == {}
    clock.now += 599
    assert leases.take([1], "bo") == {1: "ann"}
    assert leases.take([1], "ann") == {}  # a press: ten minutes more
    clock.now += 2
    assert leases.others([1, 2, 3, 4], "cy") == {1: "ann"}
    clock.now += 600
    assert leases.look([1, 2], "bo") == {}
