"""Connections to servers: by a proxy where the environment names one, and the loading of weights."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
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


def load_weights(endpoints: Sequence[str], directory: Path, version: str, timeout: float) -> None:
    """Has SGLang servers take the checkpoint in `directory`, which they see under the same path, and forget
    what they have cached. Raises `ServerError` unless all of them have done so."""
    body = {"model_path": str(directory.resolve()), "weight_version": version, "flush_cache": True}

    def load(url: str) -> str:
        transport = httpx.HTTPTransport(retries=3, proxy=proxy_for(url))
        try:
            with httpx.Client(timeout=timeout, transport=transport) as client:
                done = client.post(url.rstrip("/") + "/update_weights_from_disk", json=body).json()
            return "" if done.get("success") is True else str(done.get("message", done))
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            return " ".join(f"{type(error).__name__} {error}".split())

    with ThreadPoolExecutor() as pool:
        for url, fault in zip(endpoints, pool.map(load, endpoints), strict=True):
            if fault:
                raise ServerError(f"{named(url)}: did not load weights ({fault[:200]})")
