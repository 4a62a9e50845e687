# From nothing to Databricks: a virtual network with routers, a hub with a firewall, the Private
# Link Service, and the network connectivity config that leads to it.

terraform {
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 5.0, < 6.0"
    }
    databricks = {
      source  = "databricks/databricks"
      version = ">= 1.132, < 2.0"
    }
    azapi = {
      source  = "azure/azapi"
      version = ">= 2.0, < 3.0"
    }
    time = {
      source  = "hashicorp/time"
      version = ">= 0.11, < 1.0"
    }
  }
}

provider "azurerm" {
  features {}
  subscription_id = var.subscription_id
}

provider "azapi" {
  subscription_id = var.subscription_id
}

# The account's, not a workspace's: `az login` as an account admin, or a service principal.
provider "databricks" {
  host       = "https://accounts.azuredatabricks.net"
  account_id = var.databricks_account_id
}

module "network" {
  source = "../../modules/network"

  name               = var.name
  location           = var.location
  allowed_fqdns      = var.allowed_fqdns
  management_sources = var.management_sources

  # The routers fetch their package through the firewall.
  application_rules = var.package == null ? [] : [{
    name      = "package"
    fqdns     = [regex("^https://([^/:?]+)", var.package.url)[0]]
    protocols = [{ type = "Https", port = 443 }]
  }]
}

module "router" {
  source = "../../modules/router"

  name                = var.name
  location            = var.location
  resource_group_name = module.network.resource_group_name
  router_subnet_id    = module.network.router_subnet_id
  pls_subnet_id       = module.network.pls_subnet_id
  # Azure takes the first four addresses of a subnet, and the frontend one of the others.
  pls_nat_addresses    = [for i in range(2) : cidrhost(module.network.pls_subnet_prefix, 8 + i)]
  forwards             = var.forwards
  package              = var.package
  image                = var.image
  admin_ssh_public_key = var.admin_ssh_public_key
  management_sources   = var.management_sources
}

module "databricks" {
  source = "../../modules/databricks"

  name                    = var.name
  location                = var.location
  private_link_service_id = module.router.private_link_service_id
  endpoint_rules          = { for i, names in chunklist(var.allowed_fqdns, 10) : "rule-${i}" => names }
  workspace_ids           = var.workspace_ids
}
