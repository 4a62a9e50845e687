variable "forwards" {
  description = <<-EOT
    What the router forwards, as in [[forward]] of deploy/config.toml:
    - name: the name in counters and metrics
    - protocol: "tcp" or "udp"
    - listen: the port or the range of ports to which clients connect: "443", "8000-8010"
    - targets: addresses or DNS names, with or without a port; several spread new sessions
    - mss: the largest TCP segment size, a number or "pmtu"
    - check: an active check of the targets; type "tls" (with `sni`) behind a firewall that decides
      by name, else "tcp"
  EOT
  type = list(object({
    name     = string
    protocol = optional(string, "tcp")
    listen   = string
    targets  = list(string)
    mss      = optional(string)
    check = optional(object({
      type = string
      sni  = optional(string)
      port = optional(number)
    }))
  }))

  validation {
    condition     = length(var.forwards) > 0
    error_message = "Without a forward the router forwards nothing: give at least one."
  }
  validation {
    condition     = alltrue([for f in var.forwards : can(regex("^[a-z0-9._-]{1,32}$", f.name))])
    error_message = "A forward's name has 1 to 32 of the characters a-z 0-9 . _ - and no others."
  }
  validation {
    condition     = length(distinct(var.forwards[*].name)) == length(var.forwards)
    error_message = "Two forwards have the same name: rename one, names are labels of counters."
  }
  validation {
    condition     = alltrue([for f in var.forwards : contains(["tcp", "udp"], f.protocol)])
    error_message = "A forward's protocol is \"tcp\" or \"udp\": a Private Link Service carries no other."
  }
  validation {
    condition = alltrue([
      for f in var.forwards : can(regex("^[0-9]{1,5}(-[0-9]{1,5})?$", f.listen)) && alltrue([
        for port in split("-", f.listen) : try(tonumber(port) >= 1 && tonumber(port) <= 65535, false)
      ])
    ])
    error_message = "A forward's listen is a port (\"443\") or a range (\"8000-8010\"), 1 to 65535."
  }
  validation {
    condition = length(flatten([
      for f in var.forwards : [
        for g in var.forwards : f.name if(
          f.name != g.name && f.protocol == g.protocol && try(
            tonumber(split("-", f.listen)[0]) <= tonumber(reverse(split("-", g.listen))[0]) &&
            tonumber(split("-", g.listen)[0]) <= tonumber(reverse(split("-", f.listen))[0]),
            false
          )
        )
      ]
    ])) == 0
    error_message = "Two forwards of one protocol listen on the same port: give each ports of its own."
  }
  validation {
    condition     = alltrue([for f in var.forwards : length(f.targets) >= 1 && length(f.targets) <= 32])
    error_message = "A forward has 1 to 32 targets: addresses or names, such as \"sql.corp.example:1433\"."
  }
  validation {
    condition = alltrue([
      for t in flatten(var.forwards[*].targets) : can(regex("^[A-Za-z0-9._-]+(:[0-9]{1,5})?$", t))
    ])
    error_message = "A target is HOST or HOST:PORT, without a scheme (https://), a path or a wildcard."
  }
  validation {
    condition = alltrue([
      for f in var.forwards : f.mss == null || can(regex("^(pmtu|[0-9]{3,5})$", coalesce(f.mss, "")))
    ])
    error_message = "A forward's mss is a number of bytes (\"1360\") or \"pmtu\"."
  }
  validation {
    condition = alltrue([
      for f in var.forwards : length(split("-", f.listen)) == 1 || alltrue([for t in f.targets : !strcontains(t, ":")])
    ])
    error_message = "A forward of a range of ports has targets without a port: the one that the client used is kept."
  }
  validation {
    condition     = alltrue([for f in var.forwards : f.mss == null || f.protocol == "tcp"])
    error_message = "A forward of UDP has an mss: leave it out, only TCP announces the size of its segments."
  }
  validation {
    condition = alltrue([
      for f in var.forwards : f.check == null || try(contains(["tcp", "tls"], f.check.type), false)
    ])
    error_message = "A check's type is \"tls\" (behind a firewall that decides by name) or \"tcp\"."
  }
}

variable "sources" {
  description = "The addresses from which clients arrive: the NAT addresses of the Private Link Service."
  type        = list(string)

  validation {
    condition = length(var.sources) > 0 && alltrue([
      for s in var.sources : can(cidrhost(length(split("/", s)) == 2 ? s : "${s}/32", 0))
    ])
    error_message = "sources has IPv4 addresses or networks (\"10.0.2.8\", \"10.0.2.0/27\"), at least one."
  }
}

variable "health_port" {
  description = "The port that answers the load balancer's probe (/) and the health extension (/live)."
  type        = number
  default     = 8082

  validation {
    condition     = var.health_port >= 1 && var.health_port <= 65535
    error_message = "health_port is 1 to 65535; 8082 is the router's own default."
  }
}

variable "interface" {
  description = "The interface of the router. On Azure always the synthetic one, never its twin (enP...)."
  type        = string
  default     = "eth0"

  validation {
    condition     = !startswith(var.interface, "enP")
    error_message = "Attach to the synthetic interface (eth0): a VF (enP...) vanishes when its host is serviced."
  }
}

variable "extra_config" {
  description = <<-EOT
    Tables to add to the configuration, as TOML: [limits], [timeouts], [answers], [local], [snat],
    [admin]. The module writes [interfaces], [[forward]] and [health].
  EOT
  type        = string
  default     = ""

  validation {
    condition     = !can(regex("(?m)^\\s*\\[+\\s*(interfaces|forward|health)\\s*\\]+", var.extra_config))
    error_message = "extra_config repeats a table that the module writes: use forwards, interface, health_port."
  }
}

variable "package" {
  description = <<-EOT
    The .deb of the router, which `cargo xtask dist` makes. Null: the image has the router already.
    - url: where the VM gets it, https. Nothing on the internet is needed: give the address of a blob
      in a storage account with a private endpoint that the router's subnet can reach.
    - sha256: its checksum (`sha256sum FILE.deb`); another file is not installed
    - identity_id: the resource id of a managed identity that may read the blob (Storage Blob Data
      Reader). Null: the URL needs no token.
  EOT
  type = object({
    url         = string
    sha256      = string
    identity_id = optional(string)
  })
  default = null

  validation {
    condition     = var.package == null || can(regex("^https://[^\\s\"'\\\\$`]+$", var.package.url))
    error_message = "package.url begins with https:// and has no spaces, quotes, $ or backslashes."
  }
  validation {
    condition     = var.package == null || can(regex("^[0-9a-f]{64}$", var.package.sha256))
    error_message = "package.sha256 has 64 hexadecimal digits, lower case: the output of `sha256sum FILE.deb`."
  }
  validation {
    condition = (
      try(var.package.identity_id, null) == null || can(regex(
        "^/subscriptions/[^/]+/resource[gG]roups/[^/]+/providers/Microsoft.ManagedIdentity/userAssignedIdentities/[^/]+$",
        var.package.identity_id
      ))
    )
    error_message = "package.identity_id is the resource id of a user-assigned identity (/subscriptions/...)."
  }
}

variable "drain_minutes" {
  description = "The time that sessions get to end before Azure stops or deletes the VM, in minutes."
  type        = number
  default     = 10

  validation {
    condition     = var.drain_minutes >= 5 && var.drain_minutes <= 15 && floor(var.drain_minutes) == var.drain_minutes
    error_message = "drain_minutes is 5 to 15: Azure postpones a VM's end by no less and no more."
  }
}
