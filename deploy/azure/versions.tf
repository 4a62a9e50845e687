# For `terraform test` in this directory, which has no resources: where mocked providers come from.
# Use one of examples/, or the modules.

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
