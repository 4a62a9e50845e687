#!/bin/sh
# Installs the router's package, unless this version is installed, and starts the router. Is run
# again until it succeeds (pls-router-install.service), and at every boot.
set -eu

state=${STATE_DIRECTORY:-/var/lib/pls-router-install}
say() { echo "pls-router-install: $*" >&2; }

# A token for Azure Storage of the VM's managed identity. The metadata service is on this host.
token() {
    curl --fail --silent --show-error --noproxy '*' --max-time 10 --get \
        --header 'Metadata: true' \
        --data-urlencode 'api-version=2018-02-01' \
        --data-urlencode 'resource=https://storage.azure.com/' \
        --data-urlencode "msi_res_id=$PACKAGE_IDENTITY_ID" \
        "${METADATA:-http://169.254.169.254}/metadata/identity/oauth2/token" |
        sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p'
}

fetch() {
    set -- --fail --silent --show-error --location --connect-timeout 10 --max-time 300 \
        --output "$state/package.deb" "$PACKAGE_URL"
    if [ -n "$PACKAGE_IDENTITY_ID" ]; then
        token=$(token)
        if [ -z "$token" ]; then
            say "no token for $PACKAGE_IDENTITY_ID: is the identity assigned to this VM?"
            return 1
        fi
        # By standard input: arguments are for every user of the machine to see.
        printf 'header = "Authorization: Bearer %s"\nheader = "x-ms-version: 2021-08-06"\n' "$token" |
            curl --config - "$@"
    else
        curl "$@"
    fi
}

if [ -n "$PACKAGE_URL" ] && [ ! -e "$state/$PACKAGE_SHA256" ]; then
    mkdir -p "$state"
    if ! fetch; then
        say "cannot get $PACKAGE_URL: see the firewall's log, the private endpoint's name in DNS," \
            "and the identity's role on the storage account (Storage Blob Data Reader)"
        exit 1
    fi
    found=$(sha256sum "$state/package.deb" | cut -d ' ' -f 1)
    if [ "$found" != "$PACKAGE_SHA256" ]; then
        say "$PACKAGE_URL is not the package that was asked for: sha256 $found, not $PACKAGE_SHA256"
        exit 1
    fi
    # The configuration that cloud-init wrote stays, without a question.
    DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --install "$state/package.deb"
    rm -f "$state/package.deb"
    : >"$state/$PACKAGE_SHA256"
fi
if ! command -v pls-router >/dev/null; then
    say "there is no pls-router: give a package (url, sha256) or an image that has it"
    exit 1
fi
systemctl enable pls-router.service
exec systemctl start pls-router.service
