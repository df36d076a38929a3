#!/usr/bin/env bash
# The study of docs/language.md, into studies/language; it goes on from the rows that are there. The text is Debian's
# documentation of Python 3.11, whose sources are reStructuredText; where there is no apt-get, download the package from
# https://packages.debian.org/bookworm/python3.11-doc into studies/language.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p language && cd language

if [ ! -e data ]; then
    compgen -G "python3.11-doc_*.deb" > /dev/null || apt-get download python3.11-doc
    dpkg-deb -x python3.11-doc_*.deb package
    fwm-py language prepare package/usr/share/doc/python3.11/html/_sources --vocab 2048 --out data
fi
fwm-py language sweep ../language.toml --out .
