variable "name" {
  description = "The beginning of the names of all resources."
  type        = string
  default     = "pls-router"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,38}[a-z0-9]$", var.name))
    error_message = "name has 3 to 40 of the characters a-z 0-9 -, begins with a letter, ends with none of -."
  }
}

variable "location" {
  description = "The region: that of the Databricks workspaces, since a network connectivity config is regional."
  type        = string
}

variable "resource_group_name" {
  description = "The resource group, which exists."
  type        = string
}

variable "router_subnet_id" {
  description = "The subnet of the router VMs. Its route table leads to the firewall."
  type        = string

  validation {
    condition     = can(regex("/virtualNetworks/[^/]+/subnets/[^/]+$", var.router_subnet_id))
    error_message = "router_subnet_id is a subnet's resource id: /subscriptions/.../virtualNetworks/V/subnets/S."
  }
}

variable "pls_subnet_id" {
  description = <<-EOT
    The subnet of the load balancer's frontend and of the service's NAT addresses, with
    private_link_service_network_policies_enabled = false and without a route to the firewall.
  EOT
  type        = string

  validation {
    condition     = can(regex("/virtualNetworks/[^/]+/subnets/[^/]+$", var.pls_subnet_id))
    error_message = "pls_subnet_id is a subnet's resource id: /subscriptions/.../virtualNetworks/V/subnets/S."
  }
  validation {
    condition     = var.pls_subnet_id != var.router_subnet_id
    error_message = "pls_subnet_id is the router's subnet: the route to the firewall must not apply to the service; give another subnet."
  }
}

variable "pls_nat_addresses" {
  description = <<-EOT
    The NAT addresses of the Private Link Service, in order: 1 to 8 free addresses of its subnet.
    Each gives clients 64k connections to each router. Add at the end only: an address cannot be
    taken away again, and another order would be another service.
  EOT
  type        = list(string)

  validation {
    condition     = length(var.pls_nat_addresses) >= 1 && length(var.pls_nat_addresses) <= 8
    error_message = "pls_nat_addresses has 1 to 8 addresses: a Private Link Service takes no more."
  }
  validation {
    condition = alltrue([
      for a in var.pls_nat_addresses : can(cidrhost("${a}/32", 0)) && !strcontains(a, ":")
    ])
    error_message = "pls_nat_addresses are IPv4 addresses without a prefix, such as \"10.0.2.8\"."
  }
  validation {
    condition     = length(distinct(var.pls_nat_addresses)) == length(var.pls_nat_addresses)
    error_message = "pls_nat_addresses names an address twice: each needs one of its own."
  }
}

variable "frontend_address" {
  description = "The load balancer's address in the service's subnet. Null: Azure chooses, and it stays."
  type        = string
  default     = null

  validation {
    condition     = var.frontend_address == null || can(cidrhost("${var.frontend_address}/32", 0))
    error_message = "frontend_address is an IPv4 address of the service's subnet, or null."
  }
  validation {
    condition = (
      var.frontend_address == null || !contains(var.pls_nat_addresses, coalesce(var.frontend_address, "-"))
    )
    error_message = "frontend_address is one of pls_nat_addresses: give it another one."
  }
}

variable "forwards" {
  description = "What the router forwards; see modules/cloud-init."
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
    condition = alltrue([
      for f in var.forwards : f.protocol != "tcp" || try(
        tonumber(split("-", f.listen)[0]) > var.health_port ||
        tonumber(reverse(split("-", f.listen))[0]) < var.health_port,
        false
      )
    ])
    error_message = "A forward listens on health_port: clients would reach the probe; choose another port for one of them."
  }
}

variable "health_port" {
  description = "The port of the daemon that answers the probe (/) and the health extension (/live)."
  type        = number
  default     = 8082

  validation {
    condition = (
      var.health_port >= 1 && var.health_port <= 65535 &&
      !contains([19, 21, 25, 70, 110, 119, 143, 220, 993], var.health_port)
    )
    error_message = "health_port is 1 to 65535 and none that Azure does not probe by HTTP (19 21 25 70 110 119 143 220 993)."
  }
}

variable "extra_config" {
  description = "Tables to add to the router's configuration, as TOML; see modules/cloud-init."
  type        = string
  default     = ""
}

variable "deployment" {
  description = <<-EOT
    "scale_set": VMs that are replaced one after the other when their definition changes, and
    repaired. "virtual_machines": VMs of their own that are upgraded in place, with their sessions,
    by `cargo xtask deploy`.
  EOT
  type        = string
  default     = "scale_set"

  validation {
    condition     = contains(["scale_set", "virtual_machines"], var.deployment)
    error_message = "deployment is \"scale_set\" or \"virtual_machines\"."
  }
}

variable "instances" {
  description = "The number of routers."
  type        = number
  default     = 3

  validation {
    condition     = var.instances >= 2 && var.instances <= 100 && floor(var.instances) == var.instances
    error_message = "instances is 2 to 100: a single router is an outage whenever it is replaced."
  }
}

variable "zones" {
  description = "The availability zones of the frontend and the VMs. []: the region has none."
  type        = list(string)
  default     = ["1", "2", "3"]

  validation {
    condition     = alltrue([for z in var.zones : contains(["1", "2", "3"], z)])
    error_message = "zones has some of \"1\", \"2\", \"3\"; [] for a region without zones."
  }
  validation {
    condition     = length(distinct(var.zones)) == length(var.zones) && length(var.zones) != 1
    error_message = "zones names each zone once and at least two: with one, its outage is yours. [] for a region without zones."
  }
}

variable "vm_size" {
  description = "The size of the VMs. Accelerated networking needs 2 vCPUs or more; sizes with a p are arm64."
  type        = string
  default     = "Standard_D2s_v5"

  validation {
    condition     = startswith(var.vm_size, "Standard_") && !can(regex("^Standard_(A|B)", var.vm_size))
    error_message = "vm_size is a size with accelerated networking, such as Standard_D2s_v5; the series A and B are not for a router."
  }
}

variable "image" {
  description = <<-EOT
    The image: an id (an image or a gallery's version, which can have the router installed), or a
    publisher, offer, sku and version of the marketplace. Linux 6.1 or later. For an arm64 size, an
    arm64 image (server-arm64). Name a version instead of "latest" if VMs must be equal.
  EOT
  type = object({
    id        = optional(string)
    publisher = optional(string, "Canonical")
    offer     = optional(string, "ubuntu-24_04-lts")
    sku       = optional(string, "server")
    version   = optional(string, "latest")
  })
  default = {}
}

variable "package" {
  description = "The .deb of the router; see modules/cloud-init. Null: the image has the router."
  type = object({
    url         = string
    sha256      = string
    identity_id = optional(string)
  })
  default = null

  validation {
    condition     = var.package != null || var.image.id != null
    error_message = "No image of the marketplace has the router: give package (url, sha256) or an image.id that has it."
  }
}

variable "identity_ids" {
  description = "Further user-assigned identities of the VMs; that of the package is added."
  type        = list(string)
  default     = []
}

variable "admin_username" {
  description = "The user who may log in by SSH."
  type        = string
  default     = "azureuser"
}

variable "admin_ssh_public_key" {
  description = "That user's public key. The private key is nobody's business here: none is made or stored."
  type        = string

  validation {
    condition     = can(regex("^(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/=]+", var.admin_ssh_public_key))
    error_message = "admin_ssh_public_key is the text of a .pub file (ssh-ed25519 AAAA...), not its path and not a private key."
  }
}

variable "management_sources" {
  description = "The networks that may use SSH. []: nobody; Azure's serial console still works."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for s in var.management_sources : can(cidrhost(s, 0)) && try(tonumber(split("/", s)[1]) >= 8, false)
    ])
    error_message = "management_sources are networks such as \"10.0.9.0/24\", none larger than a /8."
  }
}

variable "automatic_repair" {
  description = <<-EOT
    Scale set only: Azure replaces a VM whose daemon does not answer on /live, or whose programs are
    not attached. It goes by /live and never by /, see the README.
  EOT
  type        = bool
  default     = true
}

variable "surge" {
  description = <<-EOT
    Scale set only: an upgrade makes a new VM first, then drains and deletes an old one (MaxSurge).
    Needs the feature Microsoft.Compute/MaxSurgeRollingUpgrade in the subscription. false: VMs are
    upgraded in place, and their sessions end.
  EOT
  type        = bool
  default     = true
}

variable "drain_minutes" {
  description = "The time that sessions get to end before Azure deletes a VM, in minutes."
  type        = number
  default     = 10

  validation {
    condition     = var.drain_minutes >= 5 && var.drain_minutes <= 15 && floor(var.drain_minutes) == var.drain_minutes
    error_message = "drain_minutes is 5 to 15: Azure postpones a VM's end by no less and no more."
  }
}

variable "visibility_subscription_ids" {
  description = "The subscriptions that may ask for a connection. []: those with a role on the service."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of all resources."
  type        = map(string)
  default     = {}
}
