mock_provider "databricks" {
  mock_resource "databricks_mws_ncc_private_endpoint_rule" {
    defaults = { endpoint_name = "databricks-endpoint-1" }
  }
}
mock_provider "azapi" {}
mock_provider "time" {}

override_data {
  target = data.azapi_resource.service[0]
  values = {
    output = {
      properties = {
        privateEndpointConnections = [
          { name = "another.0", properties = { privateEndpoint = { id = "/subscriptions/d/.../privateEndpoints/xdatabricks-endpoint-1" } } },
          { name = "ours.1", properties = { privateEndpoint = { id = "/subscriptions/d/.../privateEndpoints/Databricks-Endpoint-1" } } },
        ]
      }
    }
  }
}

variables {
  location                = "westeurope"
  private_link_service_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/privateLinkServices/pls-router-pls"
  endpoint_rules          = { python = ["pypi.org", "files.pythonhosted.org"] }
  workspace_ids           = [1234567890123456]
}

run "rules_lead_to_the_service" {
  command = apply
  module { source = "./modules/databricks" }

  assert {
    condition = (
      databricks_mws_ncc_private_endpoint_rule.this["python"].resource_id == var.private_link_service_id &&
      databricks_mws_ncc_private_endpoint_rule.this["python"].domain_names == tolist(["pypi.org", "files.pythonhosted.org"]) &&
      databricks_mws_ncc_private_endpoint_rule.this["python"].group_id == null
    )
    error_message = "the service's resource id and the names"
  }
  assert {
    condition = (
      databricks_mws_ncc_private_endpoint_rule.this["python"].network_connectivity_config_id == databricks_mws_network_connectivity_config.this[0].network_connectivity_config_id &&
      databricks_mws_ncc_binding.this["1234567890123456"].network_connectivity_config_id == databricks_mws_network_connectivity_config.this[0].network_connectivity_config_id &&
      databricks_mws_ncc_binding.this["1234567890123456"].workspace_id == 1234567890123456
    )
    error_message = "rules and workspaces are of the one config"
  }
  assert {
    condition     = databricks_mws_network_connectivity_config.this[0].region == var.location
    error_message = "a config is regional"
  }
}

run "approval" {
  command = apply
  module { source = "./modules/databricks" }

  assert {
    condition     = azapi_update_resource.approval["python"].name == "ours.1" && azapi_update_resource.approval["python"].parent_id == var.private_link_service_id
    error_message = "the rule's own connection, not one whose name ends the same"
  }
  assert {
    condition     = azapi_update_resource.approval["python"].body.properties.privateLinkServiceConnectionState.status == "Approved"
    error_message = "it is approved"
  }
}

run "connection_not_there_yet" {
  command = plan
  module { source = "./modules/databricks" }

  override_data {
    target = data.azapi_resource.service[0]
    values = { output = { properties = { privateEndpointConnections = [] } } }
  }

  expect_failures = [azapi_update_resource.approval["python"]]
}

run "approval_by_hand" {
  command = apply
  module { source = "./modules/databricks" }
  variables { approve = false }

  assert {
    condition     = length(azapi_update_resource.approval) == 0 && length(data.azapi_resource.service) == 0 && strcontains(output.next_steps, "Within 14 days")
    error_message = "nothing is approved, and the deadline is said"
  }
}

run "existing_config" {
  command = apply
  module { source = "./modules/databricks" }
  variables { network_connectivity_config_id = "00000000-1111-2222-3333-444444444444" }

  assert {
    condition     = length(databricks_mws_network_connectivity_config.this) == 0 && databricks_mws_ncc_private_endpoint_rule.this["python"].network_connectivity_config_id == "00000000-1111-2222-3333-444444444444"
    error_message = "the existing config is used"
  }
}

run "alias_instead_of_id" {
  command = plan
  module { source = "./modules/databricks" }
  variables { private_link_service_id = "pls-router-pls.00000000-0000-0000-0000-000000000000.westeurope.azure.privatelinkservice" }
  expect_failures = [var.private_link_service_id]
}

run "eleven_names" {
  command = plan
  module { source = "./modules/databricks" }
  variables { endpoint_rules = { many = [for i in range(11) : "host${i}.example.com"] } }
  expect_failures = [var.endpoint_rules]
}

run "name_twice" {
  command = plan
  module { source = "./modules/databricks" }
  variables { endpoint_rules = { a = ["pypi.org"], b = ["pypi.org"] } }
  expect_failures = [var.endpoint_rules]
}

run "wildcard" {
  command = plan
  module { source = "./modules/databricks" }
  variables { endpoint_rules = { a = ["*.pypi.org"] } }
  expect_failures = [var.endpoint_rules]
}
