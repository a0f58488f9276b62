"""Settings are read from the environment when they are asked for."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from mlstate.errors import FormatError
from mlstate.locations import local_path
from mlstate.settings import (
    cache_folder,
    default_store,
    extra_manifests,
    readonly_caches,
    value_of,
)
from mlstate.transport.credentials import Credentials
from mlstate.transport.urls import Url

LISTS = {"MLSTATE_READONLY_CACHES": readonly_caches, "MLSTATE_MANIFESTS": extra_manifests}

every_list = pytest.mark.parametrize(("variable", "read"), LISTS.items(), ids=LISTS)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "one"))
    assert cache_folder() == tmp_path / "one"
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "two"))
    assert cache_folder() == tmp_path / "two"


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_the_cache_is_in_the_users_cache_folder_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.delenv("MLSTATE_CACHE")
    if value is not None:
        monkeypatch.setenv("MLSTATE_CACHE", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "mlstate"
    assert cache_folder().is_relative_to(tmp_path)


def test_asking_for_the_cache_does_not_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    cache_folder()
    assert not (tmp_path / "cache").exists()


@every_list
def test_a_list_is_empty_unless_set(monkeypatch, variable, read):
    monkeypatch.delenv(variable, raising=False)
    assert read() == []
    monkeypatch.setenv(variable, "")
    assert read() == []


@every_list
def test_a_list_has_its_paths_in_order_and_no_empty_ones(monkeypatch, variable, read):
    monkeypatch.setenv(variable, os.pathsep.join(["", "b", "/a c", "", "b", ""]))
    assert read() == [Path("b"), Path("/a c"), Path("b")]


@every_list
def test_a_list_is_of_its_own_variable(monkeypatch, variable, read):
    for other in LISTS:
        monkeypatch.setenv(other, other)
    assert read() == [Path(variable)]


def test_white_space_around_a_setting_is_no_part_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MLSTATE_CACHE", f" {tmp_path}/cache\n")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("MLSTATE_STORE", "weights\r\n")
    assert default_store() == "weights"
    monkeypatch.setenv("MLSTATE_STORE", "\n")
    assert default_store() is None
    monkeypatch.setenv("MLSTATE_MANIFESTS", f"/a {os.pathsep} /b\n")
    assert extra_manifests() == [Path("/a"), Path("/b")]


@pytest.mark.parametrize("variable", ["MLSTATE_CACHE", "MLSTATE_STORE", "HF_ENDPOINT"])
def test_a_line_break_within_a_setting_is_refused_and_not_repeated(monkeypatch, variable):
    monkeypatch.setenv(variable, "one\nSECRET")
    with pytest.raises(FormatError, match=variable) as caught:
        value_of(variable)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["s3://bucket/cache", "https://host/x", " file:///x", "/a:s3://b"]
)
def test_an_address_is_no_folder(monkeypatch, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    for variable, read in [("MLSTATE_CACHE", cache_folder), *LISTS.items()]:
        monkeypatch.setenv(variable, value)
        with pytest.raises(FormatError, match=f"{variable} is an address") as caught:
            read()
        assert caught.value.remedy is not None
    assert not list(tmp_path.iterdir())


def test_without_a_home_the_error_names_the_setting(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    for variable in ("HOME", "MLSTATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(FormatError, match="no home folder") as caught:
        cache_folder()
    assert "MLSTATE_CACHE" in str(caught.value)
    monkeypatch.setenv("MLSTATE_MANIFESTS", "~/manifests")
    with pytest.raises(FormatError, match="no home folder") as caught:
        extra_manifests()
    assert "MLSTATE_MANIFESTS" in str(caught.value)
    with pytest.raises(FormatError, match="no home folder"):
        local_path("~/weights")
    for variable in ("XDG_CONFIG_HOME", "MLSTATE_CONFIG", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    assert Credentials().find(Url.parse("https://host.invalid/a")) is None


@pytest.mark.parametrize("value", ["http://127.0.0.1:1\n", " us-east-1", "a\nb"])
@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_bucket_refuses_what_its_library_would_panic_over(monkeypatch, value, scheme):
    from mlstate.buckets.open import open_bucket

    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(FormatError, match="AWS_ENDPOINT_URL has white space"):
        open_bucket(f"{scheme}://bucket")


def test_white_space_around_a_given_endpoint_is_no_part_of_it():
    from mlstate.buckets.open import BucketOptions, open_bucket
    from mlstate.errors import BucketError

    client = open_bucket("s3://bucket", BucketOptions(endpoint="http://127.0.0.1:1\n", attempts=1))
    with pytest.raises(BucketError):
        client.read_small("a", 10)
    for endpoint in ("http://127.0.0.1:1\nx", "http://127.0.0.1:1 x"):
        with pytest.raises(FormatError, match="white space"):
            open_bucket("s3://bucket", BucketOptions(endpoint=endpoint))


@pytest.mark.parametrize("variable", ["MLSTATE_PATIENCE", "MLSTATE_LOW_SPEED"])
@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1 2", "1e999"])
def test_a_limit_for_servers_that_is_no_number_is_said(monkeypatch, variable, value):
    from mlstate.limits import Limits

    monkeypatch.setenv(variable, value)
    with pytest.raises(FormatError, match=f"{variable} is no number"):
        Limits()


def test_limits_for_servers_are_as_the_settings_say(monkeypatch):
    from mlstate.limits import Limits

    assert (Limits().patience, Limits().low_speed) == (600, 1024)
    monkeypatch.setenv("MLSTATE_PATIENCE", " 90.5 ")
    monkeypatch.setenv("MLSTATE_LOW_SPEED", "0")
    assert (Limits().patience, Limits().low_speed) == (90.5, 0)
