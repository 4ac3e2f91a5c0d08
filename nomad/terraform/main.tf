# From a Nomad cluster without the plugin to a database on a volume: the plugin's job, its token, a volume of
# DigitalOcean, its registration in Nomad, and PostgreSQL that uses it. README.md says how to run it.

terraform {
  # Write-only arguments and ephemeral variables, so that no secret gets into the state.
  required_version = ">= 1.11"

  required_providers {
    digitalocean = {
      source  = "digitalocean/digitalocean"
      version = "~> 2.0"
    }
    nomad = {
      source  = "hashicorp/nomad"
      version = "~> 2.6"
    }
  }
}

# The token comes from DIGITALOCEAN_TOKEN.
provider "digitalocean" {}

# The address and the token come from NOMAD_ADDR and NOMAD_TOKEN.
provider "nomad" {}

# The plugin

resource "nomad_variable" "plugin" {
  path             = "nomad/jobs/do-csi-plugin"
  items_wo         = jsonencode({ token = var.plugin_token })
  items_wo_version = var.plugin_token_version
}

resource "nomad_job" "plugin" {
  jobspec = file("${path.module}/../plugin.nomad.hcl")

  hcl2 {
    vars = {
      owner       = var.owner
      image       = var.image
      datacenters = jsonencode(var.datacenters)
    }
  }

  depends_on = [nomad_variable.plugin]
}

# Registering a volume needs a controller that is healthy.
data "nomad_plugin" "digitalocean" {
  plugin_id        = "digitalocean"
  wait_for_healthy = true

  depends_on = [nomad_job.plugin]
}

# A volume

resource "digitalocean_volume" "postgres" {
  name                    = "postgres"
  region                  = var.region
  size                    = var.size
  initial_filesystem_type = "xfs"
  description             = "Registered in Nomad as postgres"

  lifecycle {
    # Terraform never deletes the data, not even with terraform destroy.
    prevent_destroy = true
    # The plugin puts its owner's tag on when it attaches the volume, and the next apply is not to take it off again.
    ignore_changes = [tags]
  }
}

resource "nomad_csi_volume_registration" "postgres" {
  plugin_id   = data.nomad_plugin.digitalocean.plugin_id
  volume_id   = "postgres"
  name        = "postgres"
  external_id = digitalocean_volume.postgres.id

  capability {
    access_mode     = "single-node-writer"
    attachment_mode = "file-system"
  }

  mount_options {
    fs_type = "xfs"
  }
}

# A service on it

resource "nomad_variable" "postgres" {
  path             = "nomad/jobs/postgres"
  items_wo         = jsonencode({ password = var.postgres_password })
  items_wo_version = var.postgres_password_version
}

resource "nomad_job" "postgres" {
  jobspec = file("${path.module}/../postgres.nomad.hcl")
  # Wait until the database runs.
  detach = false

  hcl2 {
    vars = {
      datacenters = jsonencode(var.datacenters)
    }
  }

  depends_on = [nomad_variable.postgres, nomad_csi_volume_registration.postgres]
}
