terraform {
  required_version = ">= 1.9"

  required_providers {
    # Of the account (https://accounts.azuredatabricks.net), not of a workspace.
    databricks = {
      source  = "databricks/databricks"
      version = ">= 1.132, < 2.0"
    }
    # azurerm cannot approve a connection to a Private Link Service.
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
