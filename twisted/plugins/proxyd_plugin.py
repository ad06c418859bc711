"""What makes ``twistd proxyd`` known to Twisted. An ``__init__.py`` beside it would hide Twisted's own plugins."""

from twisted.application.service import ServiceMaker

proxyd = ServiceMaker("proxyd", "proxyd.tap", "Egress proxy for HTTP, CONNECT and SOCKS5.", "proxyd")
