"""TLS contexts from certificate files."""

import ssl

from broker.transports.settings import TlsSettings

__all__ = ["make_context"]


def make_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return a server context: TLS 1.2 or newer, client certificates where a CA is given.

    Raises OSError or ssl.SSLError where a file is missing or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate_path, settings.key_path)
    context.set_alpn_protocols(["mqtt", "http/1.1"])
    if settings.ca_path is not None:
        context.load_verify_locations(settings.ca_path)
        context.verify_mode = ssl.CERT_REQUIRED if settings.require_certificate else ssl.CERT_OPTIONAL
    return context
