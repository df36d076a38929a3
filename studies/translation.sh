#!/usr/bin/env bash
# The study of docs/translation.md, into studies/translation; it goes on from the rows that are there. The text is the
# help of LibreOffice in Debian; where there is no apt-get, download libreoffice-help-en-us and libreoffice-help-de from
# https://packages.debian.org/bookworm into studies/translation.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p translation && cd translation

if [ ! -e data ]; then
    for language in en-us de; do
        compgen -G "libreoffice-help-${language}_*.deb" > /dev/null || apt-get download "libreoffice-help-$language"
        dpkg-deb -x libreoffice-help-"$language"_*.deb package
    done
    python ../../examples/libreoffice_help.py package pairs
    fwm-py translation prepare --source pairs/train.en --target pairs/train.de --valid pairs/valid.en pairs/valid.de \
        --test pairs/test.en pairs/test.de --vocab 4000 --out data
fi
fwm-py translation sweep ../translation.toml --out .
