variable "name" {
  description = "The name of the network connectivity config, and the beginning of descriptions."
  type        = string
  default     = "pls-router"

  validation {
    condition     = can(regex("^[A-Za-z0-9-]{3,30}$", var.name))
    error_message = "name has 3 to 30 of the characters A-Z a-z 0-9 -: Databricks takes no others."
  }
}

variable "location" {
  description = "The region of the workspaces and of the Private Link Service."
  type        = string
}

variable "network_connectivity_config_id" {
  description = "An existing network connectivity config. Null: one is made (at most 10 in a region)."
  type        = string
  default     = null

  validation {
    condition     = var.network_connectivity_config_id == null || can(regex("^[0-9a-f-]{36}$", var.network_connectivity_config_id))
    error_message = "network_connectivity_config_id is a UUID: the account console shows it under Cloud resources, Network connectivity configurations."
  }
}

variable "private_link_service_id" {
  description = "The service's resource id: the output private_link_service_id of modules/router."
  type        = string

  validation {
    condition     = can(regex("/providers/Microsoft.Network/privateLinkServices/[^/]+$", var.private_link_service_id))
    error_message = "private_link_service_id is a resource id that ends with /Microsoft.Network/privateLinkServices/NAME; the alias does not serve here."
  }
}

variable "endpoint_rules" {
  description = <<-EOT
    The names that serverless compute reaches through the service, by rules that you name: each makes
    a private endpoint and has up to 10 names. A name moves between rules in two steps, out of the
    one and then into the other.
  EOT
  type        = map(list(string))

  validation {
    condition     = length(var.endpoint_rules) > 0
    error_message = "endpoint_rules is empty: without a rule no name takes this way."
  }
  validation {
    condition     = alltrue([for names in values(var.endpoint_rules) : length(names) >= 1 && length(names) <= 10])
    error_message = "A rule of endpoint_rules has 1 to 10 names: give more rules for more names."
  }
  validation {
    condition     = length(distinct(flatten(values(var.endpoint_rules)))) == length(flatten(values(var.endpoint_rules)))
    error_message = "endpoint_rules has a name twice: it can lead to one private endpoint only."
  }
  validation {
    condition     = alltrue([for n in flatten(values(var.endpoint_rules)) : can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z][a-z0-9-]*$", n))])
    error_message = "endpoint_rules has names such as \"pypi.org\", lower case, without https://, paths and wildcards."
  }
}

variable "workspace_ids" {
  description = "The workspaces that use the config: the numbers after adb- in their addresses."
  type        = set(number)
  default     = []

  validation {
    condition     = length(var.workspace_ids) <= 50
    error_message = "More than 50 workspaces: a network connectivity config takes no more; make a second one."
  }
}

variable "approve" {
  description = <<-EOT
    Approve the connections on the service, which takes the right to write to it. false: someone does
    it by hand, within 14 days, as next_steps says.
  EOT
  type        = bool
  default     = true
}

variable "approval_delay" {
  description = "The time between a new rule and its connection's appearance on the service."
  type        = string
  default     = "120s"

  validation {
    condition     = can(regex("^[0-9]+(s|m)$", var.approval_delay))
    error_message = "approval_delay is a time such as \"120s\" or \"5m\"."
  }
}
