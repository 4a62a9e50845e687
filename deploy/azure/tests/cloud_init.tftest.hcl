# The configuration and the cloud-init as text. That pls-router and cloud-init accept them is for
# offline/run.py to find out.

variables {
  forwards = [
    { name = "https", listen = "443", targets = ["203.0.113.10:443"] },
    {
      name  = "sql", listen = "1433-1434", targets = ["a.corp.example", "b.corp.example"], mss = "1360",
      check = { type = "tcp", port = 1433 }
    },
    { name = "dns", protocol = "udp", listen = "53", targets = ["10.9.0.4", "10.9.0.5:5353"] },
    { name = "git", listen = "9418", targets = ["git.corp.example"], mss = "pmtu" },
  ]
  sources = ["10.0.0.8", "10.0.0.9"]
}

run "config" {
  command = apply
  module { source = "./modules/cloud-init" }

  assert {
    condition     = length(regexall("(?m)^sources = \\[\"10\\.0\\.0\\.8/32\",\"10\\.0\\.0\\.9/32\"\\]$", output.config)) == 4
    error_message = "every forward admits the NAT addresses and nobody else"
  }
  assert {
    condition     = strcontains(output.config, "[health]\nlisten = \"0.0.0.0:8082\"\nfrom = [\"168.63.129.16\"]")
    error_message = "the probe's port, and reasons for the platform only"
  }
  assert {
    condition     = strcontains(output.config, "check = { type = \"tcp\", port = 1433 }")
    error_message = "a check without what was not given"
  }
  assert {
    condition     = strcontains(output.config, "mss = 1360\n") && strcontains(output.config, "mss = \"pmtu\"")
    error_message = "mss as a number or a word"
  }
}

run "cloud_init" {
  command = apply
  module { source = "./modules/cloud-init" }

  variables {
    package = {
      url         = "https://example.blob.core.windows.net/p/pls-router.deb?a=1&b=%20"
      sha256      = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
      identity_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
    }
    drain_minutes = 5
  }

  assert {
    condition     = startswith(output.user_data, "#cloud-config\n")
    error_message = "cloud-init goes by the first line"
  }
  assert {
    condition = one([
      for file in yamldecode(output.user_data).write_files :
      base64decode(file.content) if file.path == "/etc/pls-router/config.toml"
    ]) == output.config
    error_message = "the file is the configuration"
  }
  assert {
    condition = one([
      for file in yamldecode(output.user_data).write_files :
      base64decode(file.content) if file.path == "/etc/pls-router/azure.env"
      ]) == join("", [
      "DRAIN_SECONDS='270'\n",
      "PACKAGE_IDENTITY_ID='/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i'\n",
      "PACKAGE_SHA256='0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'\n",
      "PACKAGE_URL='https://example.blob.core.windows.net/p/pls-router.deb?a=1&b=%20'\n",
    ])
    error_message = "what the scripts need to know"
  }
  assert {
    condition     = !strcontains(output.user_data, "http://") && !can(regex("(?i)apt-get|apt |packages:|package_update", output.user_data))
    error_message = "nothing comes from the internet unless package.url says so"
  }
}

run "port_of_the_probe" {
  command = apply
  module { source = "./modules/cloud-init" }
  variables { health_port = 9000 }

  assert {
    condition     = strcontains(output.config, "listen = \"0.0.0.0:9000\"")
    error_message = "the port that was asked for"
  }
}

run "no_forwards" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { forwards = [] }
  expect_failures = [var.forwards]
}

run "overlapping_forwards" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables {
    forwards = [
      { name = "a", listen = "8000-8010", targets = ["10.9.0.4"] },
      { name = "b", listen = "8010", targets = ["10.9.0.5"] },
    ]
  }
  expect_failures = [var.forwards]
}

run "target_with_a_scheme" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { forwards = [{ name = "a", listen = "443", targets = ["https://pypi.org"] }] }
  expect_failures = [var.forwards]
}

run "port_for_a_range" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { forwards = [{ name = "a", listen = "8000-8010", targets = ["10.9.0.4:80"] }] }
  expect_failures = [var.forwards]
}

run "segments_of_udp" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { forwards = [{ name = "a", protocol = "udp", listen = "53", targets = ["10.9.0.4"], mss = "pmtu" }] }
  expect_failures = [var.forwards]
}

run "anyone_as_a_source" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { sources = ["any"] }
  expect_failures = [var.sources]
}

run "table_twice" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { extra_config = "[health]\nlisten = \"0.0.0.0:1\"" }
  expect_failures = [var.extra_config]
}

run "package_without_tls" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables {
    package = { url = "http://example.com/x.deb", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
  }
  expect_failures = [var.package]
}

run "package_without_checksum" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { package = { url = "https://example.com/x.deb", sha256 = "latest" } }
  expect_failures = [var.package]
}

run "too_large" {
  command = plan
  module { source = "./modules/cloud-init" }
  variables { extra_config = join("", [for i in range(1000) : "# a comment that is as long as a line may be, and says nothing at all here\n"]) }
  expect_failures = [output.user_data]
}
