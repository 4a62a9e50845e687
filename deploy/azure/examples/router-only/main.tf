# Routers in subnets that exist, behind a firewall that exists: for platform teams that have their
# own templates for networks.

terraform {
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 5.0, < 6.0"
    }
  }
}

provider "azurerm" {
  features {}
  subscription_id = var.subscription_id
}

module "router" {
  source = "../../modules/router"

  name                 = var.name
  location             = var.location
  resource_group_name  = var.resource_group_name
  router_subnet_id     = var.router_subnet_id
  pls_subnet_id        = var.pls_subnet_id
  pls_nat_addresses    = var.pls_nat_addresses
  forwards             = var.forwards
  package              = var.package
  image                = var.image
  admin_ssh_public_key = var.admin_ssh_public_key
  management_sources   = var.management_sources
}
