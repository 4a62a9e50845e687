# That the modules fit together, with the examples' own values.

mock_provider "azurerm" {
  mock_resource "azurerm_private_link_service" {
    defaults = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/privateLinkServices/pls-router-pls" }
  }
}
mock_provider "databricks" {
  mock_resource "databricks_mws_ncc_private_endpoint_rule" {
    defaults = { endpoint_name = "databricks-endpoint-1" }
  }
}
mock_provider "azapi" {
  mock_data "azapi_resource" {
    defaults = {
      output = { properties = { privateEndpointConnections = [
        { name = "ours.1", properties = { privateEndpoint = { id = "/subscriptions/d/.../privateEndpoints/databricks-endpoint-1" } } },
      ] } }
    }
  }
}
mock_provider "time" {}

variables {
  subscription_id       = "00000000-0000-0000-0000-000000000000"
  databricks_account_id = "11111111-1111-1111-1111-111111111111"
  workspace_ids         = [1234567890123456]
  location              = "westeurope"
  allowed_fqdns         = ["pypi.org", "files.pythonhosted.org"]
  forwards              = [{ name = "https", listen = "443", targets = ["pypi.org"], check = { type = "tls", sni = "pypi.org" } }]
  admin_ssh_public_key  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam"
  package = {
    url    = "https://example.blob.core.windows.net/p/pls-router.deb"
    sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
}

run "everything_new" {
  command = apply
  module { source = "./examples/everything-new" }

  override_resource {
    target = module.network.azurerm_subnet.router
    values = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/router" }
  }
  override_resource {
    target = module.network.azurerm_subnet.pls
    values = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pls" }
  }

  assert {
    condition     = output.pls_nat_addresses == tolist(["10.0.0.8", "10.0.0.9"]) && strcontains(output.config, "sources = [\"10.0.0.8/32\",\"10.0.0.9/32\"]")
    error_message = "NAT addresses of the service's subnet are the rules' sources"
  }
  assert {
    condition     = output.endpoint_rules["rule-0"].domain_names == tolist(["pypi.org", "files.pythonhosted.org"])
    error_message = "Databricks and the firewall know the same names"
  }
  assert {
    condition     = alltrue([for word in ["Network:", "Routers:", "Databricks:"] : strcontains(output.next_steps, word)])
    error_message = "the next steps of all"
  }
}

run "existing_hub" {
  command = apply
  module { source = "./examples/existing-hub" }
  variables {
    address_space = "10.20.30.0/24"
    existing_hub = {
      virtual_network_id          = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/hub"
      firewall_private_ip_address = "10.1.0.4"
      firewall_policy_id          = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/hub/providers/Microsoft.Network/firewallPolicies/hub"
    }
  }

  override_resource {
    target = module.network.azurerm_subnet.router
    values = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/router" }
  }
  override_resource {
    target = module.network.azurerm_subnet.pls
    values = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pls" }
  }

  assert {
    condition     = output.pls_nat_addresses == tolist(["10.20.30.8", "10.20.30.9"]) && output.firewall_private_ip_address == "10.1.0.4"
    error_message = "within the given network, to the given firewall"
  }
}

run "router_only" {
  command = apply
  module { source = "./examples/router-only" }
  variables {
    resource_group_name = "routers"
    router_subnet_id    = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/router"
    pls_subnet_id       = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pls"
    pls_nat_addresses   = ["10.20.30.8"]
  }

  assert {
    condition     = output.private_link_service_id == "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/privateLinkServices/pls-router-pls"
    error_message = "the service for the Databricks rule"
  }
}
