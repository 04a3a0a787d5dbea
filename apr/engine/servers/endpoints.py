"""Connections to servers: by a proxy where the environment names one, and the loading of weights."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from apr.core.errors import ServerError


def proxy_for(url: str) -> httpx.Proxy | None:
    """Returns the proxy to `url`: HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, unless NO_PROXY names its host.

    To this machine (localhost, loopback addresses) there is none, as in browsers and in Go: a proxy on
    another machine would look for the server at home. Raises `ServerError` if the proxy or `url` is none.
    """
    try:
        address, proxies = httpx.URL(url), getproxies()
        if address.scheme not in ("http", "https") or not address.host:
            raise ValueError("allowed: http://HOST:PORT")
        named = proxies.get(address.scheme) or proxies.get("all")
        if not named or _is_here(address.host) or proxy_bypass(address.netloc.decode()):
            return None
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
        httpx.HTTPTransport(proxy=proxy).close()
        return proxy
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ServerError(f"{url}: no address of a server, or the proxy for it is none ({error})") from None


def named(url: str) -> str:
    """`url`, and the proxy to it without its password: for whatever goes wrong on the way."""
    proxy = proxy_for(url)
    return f"{url} (by the proxy {proxy.url})" if proxy else url


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def loading(backend: str, directory: str, version: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the requests, path and body, by which a server takes weights and forgets what it has cached.

    vLLM has to be in development mode; while it loads, its version is one that nobody asks for.
    """
    if backend == "sglang":
        body = {"model_path": directory, "weight_version": version, "flush_cache": True}
        return [("/update_weights_from_disk", body)]
    reload = {"method": "reload_weights", "kwargs": {"weights_path": directory}}
    before, after = ({"new_version": name} for name in ("loading", version))
    return [("/pause", {}), ("/update_weight_version", before), ("/collective_rpc", reload),
            ("/update_weight_version", after), ("/resume", {})]  # fmt: skip


def load_weights(
    backend: str, endpoints: Sequence[str], directory: Path, version: str, timeout: float
) -> None:
    """Has servers of `backend` take the checkpoint in `directory`, which they see under the same path, as
    `version`. Raises `ServerError` unless all of them have done so."""
    calls = loading(backend, str(directory.resolve()), version)

    def load(url: str) -> str:
        transport = httpx.HTTPTransport(retries=3, proxy=proxy_for(url))
        try:
            with httpx.Client(timeout=timeout, transport=transport) as client:
                for path, body in calls:
                    answer = client.post(url.rstrip("/") + path, json=body)
                    if not answer.is_success or answer.json().get("success") is False:
                        return " ".join(f"{path}: {answer.status_code} {answer.text}".split())
            return ""
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            return " ".join(f"{type(error).__name__} {error}".split())

    with ThreadPoolExecutor() as pool:
        for url, fault in zip(endpoints, pool.map(load, endpoints), strict=True):
            if fault:
                raise ServerError(f"{named(url)}: did not load weights ({fault[:200]})")
