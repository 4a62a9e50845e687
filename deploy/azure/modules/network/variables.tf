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
  description = "An existing resource group. Null: one is made, with this name and -rg."
  type        = string
  default     = null
}

variable "address_space" {
  description = "The address space of the routers' virtual network, which is made. Peers must not overlap."
  type        = string
  default     = "10.0.0.0/24"

  validation {
    condition     = can(cidrhost(var.address_space, 0)) && !strcontains(var.address_space, ":")
    error_message = "address_space is an IPv4 network such as \"10.0.0.0/24\"."
  }
}

variable "router_subnet_prefix" {
  description = "The subnet of the routers, within address_space. /27 has 27 usable addresses; a surge needs some to spare."
  type        = string
  default     = "10.0.0.64/26"

  validation {
    condition     = can(cidrhost(var.router_subnet_prefix, 0)) && try(tonumber(split("/", var.router_subnet_prefix)[1]) <= 28, false)
    error_message = "router_subnet_prefix is an IPv4 network of at least 16 addresses (a /28 or larger), such as \"10.0.0.64/26\"."
  }
  validation {
    condition = try(
      cidrhost("${cidrhost(var.router_subnet_prefix, 0)}/${split("/", var.address_space)[1]}", 0) == cidrhost(var.address_space, 0) &&
      tonumber(split("/", var.router_subnet_prefix)[1]) >= tonumber(split("/", var.address_space)[1]),
      false
    )
    error_message = "router_subnet_prefix is not within address_space: change one of them."
  }
}

variable "pls_subnet_prefix" {
  description = "The subnet of the load balancer's frontend and the service's NAT addresses, within address_space."
  type        = string
  default     = "10.0.0.0/26"

  validation {
    condition     = can(cidrhost(var.pls_subnet_prefix, 0)) && try(tonumber(split("/", var.pls_subnet_prefix)[1]) <= 28, false)
    error_message = "pls_subnet_prefix is an IPv4 network of at least 16 addresses (a /28 or larger): Azure takes 5, the service up to 8, the frontend 1."
  }
  validation {
    condition     = var.pls_subnet_prefix != var.router_subnet_prefix
    error_message = "pls_subnet_prefix is that of the routers: the service needs a subnet without the route to the firewall."
  }
  validation {
    condition = try(
      cidrhost("${cidrhost(var.pls_subnet_prefix, 0)}/${split("/", var.address_space)[1]}", 0) == cidrhost(var.address_space, 0) &&
      tonumber(split("/", var.pls_subnet_prefix)[1]) >= tonumber(split("/", var.address_space)[1]),
      false
    )
    error_message = "pls_subnet_prefix is not within address_space: change one of them."
  }
}

variable "existing_hub" {
  description = <<-EOT
    An existing hub with a firewall. Null: both are made.
    - virtual_network_id: the hub
    - firewall_private_ip_address: the next hop of the routers
    - firewall_policy_id: a policy of that firewall to which the rules are added. Null: its owners do
      that, as next_steps says
    - peer_from_hub: also make the hub's half of the peering, which takes the right to write to the
      hub, in this subscription. false: its owners do that
  EOT
  type = object({
    virtual_network_id          = string
    firewall_private_ip_address = string
    firewall_policy_id          = optional(string)
    peer_from_hub               = optional(bool, true)
  })
  default = null

  validation {
    condition = var.existing_hub == null || can(regex(
      "^/subscriptions/[^/]+/resource[gG]roups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+$",
      var.existing_hub.virtual_network_id
    ))
    error_message = "existing_hub.virtual_network_id is a resource id: /subscriptions/.../virtualNetworks/NAME."
  }
  validation {
    condition     = var.existing_hub == null || can(cidrhost("${var.existing_hub.firewall_private_ip_address}/32", 0))
    error_message = "existing_hub.firewall_private_ip_address is the firewall's private IPv4 address, without a prefix."
  }
}

variable "hub_address_space" {
  description = "The address space of the hub that is made."
  type        = string
  default     = "10.1.0.0/24"

  validation {
    condition     = can(cidrhost(var.hub_address_space, 0))
    error_message = "hub_address_space is an IPv4 network such as \"10.1.0.0/24\"."
  }
}

variable "firewall_subnet_prefix" {
  description = "The firewall's subnet in the hub that is made; Azure wants a /26."
  type        = string
  default     = "10.1.0.0/26"

  validation {
    condition     = can(cidrhost(var.firewall_subnet_prefix, 0)) && try(tonumber(split("/", var.firewall_subnet_prefix)[1]) <= 26, false)
    error_message = "firewall_subnet_prefix is a network of at least 64 addresses (a /26 or larger): Azure Firewall scales out in it."
  }
  validation {
    condition = try(
      cidrhost("${cidrhost(var.firewall_subnet_prefix, 0)}/${split("/", var.hub_address_space)[1]}", 0) == cidrhost(var.hub_address_space, 0) &&
      tonumber(split("/", var.firewall_subnet_prefix)[1]) >= tonumber(split("/", var.hub_address_space)[1]),
      false
    )
    error_message = "firewall_subnet_prefix is not within hub_address_space: change one of them."
  }
}

variable "firewall_sku_tier" {
  description = "The tier of the firewall that is made."
  type        = string
  default     = "Standard"

  validation {
    condition     = contains(["Standard", "Premium"], var.firewall_sku_tier)
    error_message = "firewall_sku_tier is \"Standard\" or \"Premium\": Basic needs a management subnet and carries 250 Mbit/s."
  }
}

variable "firewall_public_ip_count" {
  description = "The public addresses of the firewall that is made: each gives 2,496 connections to one target per instance."
  type        = number
  default     = 2

  validation {
    condition     = var.firewall_public_ip_count >= 1 && var.firewall_public_ip_count <= 250
    error_message = "firewall_public_ip_count is 1 to 250."
  }
}

variable "zones" {
  description = "The availability zones of the firewall and its addresses. []: the region has none."
  type        = list(string)
  default     = ["1", "2", "3"]

  validation {
    condition     = alltrue([for z in var.zones : contains(["1", "2", "3"], z)])
    error_message = "zones has some of \"1\", \"2\", \"3\"; [] for a region without zones."
  }
}

variable "allowed_fqdns" {
  description = <<-EOT
    The names that may be reached by HTTPS on port 443, by application rules of the firewall; all
    others are denied. The Databricks rule has to name them as well. "*.example.com" covers all names
    below it.
  EOT
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for f in var.allowed_fqdns : can(regex("^(\\*\\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", f))])
    error_message = "allowed_fqdns has names such as \"pypi.org\" or \"*.example.com\", lower case, without https:// and paths."
  }
}

variable "application_rules" {
  description = "Further names, with other protocols and ports (Http, Https, Mssql)."
  type = list(object({
    name      = string
    fqdns     = list(string)
    protocols = list(object({ type = string, port = number }))
  }))
  default = []

  validation {
    condition = alltrue([
      for p in flatten(var.application_rules[*].protocols) :
      contains(["Http", "Https", "Mssql"], p.type) && p.port >= 1 && p.port <= 65535
    ])
    error_message = "A protocol of application_rules is { type = \"Http\", \"Https\" or \"Mssql\", port = 1 to 65535 }; others need network_rules."
  }
  validation {
    condition     = alltrue([for f in flatten(var.application_rules[*].fqdns) : f != "*" && !strcontains(f, "/")])
    error_message = "fqdns of application_rules are names; \"*\" would allow every server that exists."
  }
}

variable "network_rules" {
  description = "Targets that are neither HTTP(S) nor SQL Server, by address and port. They come before application rules."
  type = list(object({
    name         = string
    protocols    = optional(list(string), ["TCP"])
    destinations = list(string)
    ports        = list(string)
  }))
  default = []

  validation {
    condition     = alltrue([for p in flatten(var.network_rules[*].protocols) : contains(["TCP", "UDP"], p)])
    error_message = "protocols of network_rules are \"TCP\" and \"UDP\"."
  }
  validation {
    condition = alltrue([
      for d in flatten(var.network_rules[*].destinations) : d != "*" && d != "0.0.0.0/0" && can(cidrhost(length(split("/", d)) == 2 ? d : "${d}/32", 0))
    ])
    error_message = "destinations of network_rules are addresses or networks, and not all there are."
  }
}

variable "rules_priority" {
  description = "The priority of the group of rules within the firewall's policy."
  type        = number
  default     = 500

  validation {
    condition     = var.rules_priority >= 100 && var.rules_priority <= 65000
    error_message = "rules_priority is 100 to 65000, and not that of another group of the policy."
  }
}

variable "health_port" {
  description = "The port that answers the load balancer's probe."
  type        = number
  default     = 8082
}

variable "management_sources" {
  description = "The networks that may use SSH on the routers. []: nobody."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for s in var.management_sources : can(cidrhost(s, 0)) && try(tonumber(split("/", s)[1]) >= 8, false)
    ])
    error_message = "management_sources are networks such as \"10.0.9.0/24\", none larger than a /8."
  }
}

variable "log_analytics_workspace_id" {
  description = "Where the firewall that is made logs what it allows and denies. Null: nowhere."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of all resources."
  type        = map(string)
  default     = {}
}
