variable "subscription_id" {
  description = "The subscription of everything that is made."
  type        = string
}

variable "databricks_account_id" {
  description = "The Databricks account: the account console shows it, top right."
  type        = string
}

variable "workspace_ids" {
  description = "The workspaces that use the way: the numbers after adb- in their addresses."
  type        = set(number)
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

variable "allowed_fqdns" {
  description = "The names that serverless compute may reach, by HTTPS. Add at the end; all others are denied."
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
