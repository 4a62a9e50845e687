terraform {
  required_version = ">= 1.9"

  required_providers {
    # Names of arguments differ in 4.x (enable_accelerated_networking and others).
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 5.0, < 6.0"
    }
  }
}
