"""What to change if the configured Prefect server cannot be used, found by asking what is at its address and near it."""

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    import httpx

PROBE_S = 3.0
UNAUTHORIZED = (401, 403)


def advice(url: str, error: BaseException) -> str:
    """Return what the user should change, as a clause of a message.

    Args:
        url: the address of the API as configured, which may contain a password.
        error: why it could not be used.
    """
    response = getattr(error, "response", None)
    if response is not None and response.status_code in UNAUTHORIZED:
        return "set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY for Prefect Cloud, to what this server accepts"
    proxy = _proxy(url)
    if proxy and _is_prefect(url, proxies=False):
        return f"it responds without the proxy {proxy}: add {urlsplit(url).hostname} to NO_PROXY"
    if not url.rstrip("/").endswith("/api") and _is_prefect(f"{url.rstrip('/')}/api"):
        return f"/api is missing: set PREFECT_API_URL to {without_password(url).rstrip('/')}/api"
    scheme, _, rest = url.partition("://")
    if (other := {"http": "https", "https": "http"}.get(scheme)) and _is_prefect(f"{other}://{rest}"):
        return f"it uses {other}: set PREFECT_API_URL to {without_password(f'{other}://{rest}')}"
    if page := _page(url):
        return f"{page}, expected Prefect's API: check the address, and whether a login page or a reverse proxy is in between"
    if proxy:
        return f"requests to it are sent through the proxy {proxy}: start that, or add {urlsplit(url).hostname} to NO_PROXY"
    return "start it (prefect server start)"


def without_password(url: str) -> str:
    """Return a URL without its user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _proxy(url: str) -> str:
    """The proxy of the environment for a URL, with the variable that sets it; empty if there is none."""
    parts, proxies = urlsplit(url), getproxies()
    scheme = next((scheme for scheme in (parts.scheme, "all") if proxies.get(scheme)), "")
    if not scheme or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    return f"{without_password(proxies[scheme])} ({scheme.upper()}_PROXY)"


def _is_prefect(url: str, *, proxies: bool = True) -> bool:
    """Whether Prefect's API is at this address: its health check needs no password, and answers `true`."""
    response = _get(f"{url.rstrip('/')}/health", proxies)
    return response is not None and response.status_code == 200 and response.text.strip() == "true"


def _page(url: str) -> str:
    """Description of the redirect or the web page at the address; empty if there is neither."""
    response = _get(f"{url.rstrip('/')}/health", proxies=True)
    if response is None:
        return ""
    if response.has_redirect_location:
        target = without_password(response.headers["location"]).partition("?")[0]
        return f"it redirects to {target[:100]}"
    if "html" not in response.headers.get("content-type", ""):
        return ""
    title = re.search(r"<title[^>]*>(.*?)</title>", response.text[:10_000], re.IGNORECASE | re.DOTALL)
    name = " ".join(title[1].split())[:60] if title else ""
    return f"it answers with a web page{f' ({name})' if name else ''}"


def _get(url: str, proxies: bool) -> "httpx.Response | None":
    import httpx

    try:
        # Sends no password, so that a certificate which cannot be verified does no harm.
        return httpx.get(without_password(url), timeout=PROBE_S, trust_env=proxies, verify=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError):  # ImportError: a SOCKS proxy without its package
        return None
