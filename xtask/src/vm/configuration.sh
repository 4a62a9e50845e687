# Prints a configuration for this interface, by which the router's programs are tried.
configuration() {
    cat <<END
[interfaces]
pls = "$1"

[[forward]]
name = "https"
protocol = "tcp"
listen = "443"
target = "10.9.0.2:443"
sources = ["10.9.0.0/24"]

[limits]
flows = 4096
END
}
