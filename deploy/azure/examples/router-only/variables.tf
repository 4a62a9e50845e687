variable "subscription_id" {
  description = "The subscription of everything that is made."
  type        = string
}

variable "name" {
  description = "The beginning of all names."
  type        = string
  default     = "pls-router"
}

variable "location" {
  description = "The region of the Databricks workspaces."
  type        = string
}

variable "resource_group_name" {
  description = "The resource group, which exists."
  type        = string
}

variable "router_subnet_id" {
  description = "The routers' subnet: 0.0.0.0/0 leads to the firewall."
  type        = string
}

variable "pls_subnet_id" {
  description = "The service's subnet: no such route, and private_link_service_network_policies_enabled = false."
  type        = string
}

variable "pls_nat_addresses" {
  description = "1 to 8 free addresses of the service's subnet."
  type        = list(string)
}

variable "forwards" {
  description = "What is forwarded; see modules/cloud-init."
  type = list(object({
    name     = string
    protocol = optional(string, "tcp")
    listen   = string
    targets  = list(string)
    mss      = optional(string)
    check    = optional(object({ type = string, sni = optional(string), port = optional(number) }))
  }))
}

variable "package" {
  description = "The router's .deb; see modules/cloud-init. Null: the image has it."
  type        = object({ url = string, sha256 = string, identity_id = optional(string) })
  default     = null
}

variable "image" {
  description = "The image; see modules/router."
  type = object({
    id        = optional(string)
    publisher = optional(string, "Canonical")
    offer     = optional(string, "ubuntu-24_04-lts")
    sku       = optional(string, "server")
    version   = optional(string, "latest")
  })
  default = {}
}

variable "admin_ssh_public_key" {
  description = "The text of a .pub file."
  type        = string
}

variable "management_sources" {
  description = "The networks that may use SSH."
  type        = list(string)
  default     = []
}
