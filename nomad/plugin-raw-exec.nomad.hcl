# The plugin without Docker, as a program of the host. Nomad 1.4 and later.
#
# Nomad must run as root, with the raw_exec driver enabled. The program and the tools that it needs must be installed on
# every client: xfsprogs, e2fsprogs, btrfs-progs, and for encrypted volumes cryptsetup-bin and dmsetup.
#
# A program of the host sees the host's paths, not those of a container, so both must be the same. That is why
# stage_publish_base_dir below names the directory that Nomad keeps for this plugin: data_dir/client/csi/monolith/ID,
# with the client's data_dir and the id of the plugin.

variable "command" {
  type    = string
  default = "/usr/local/bin/do-csi-plugin"
}

variable "data_dir" {
  type        = string
  default     = "/opt/nomad/data"
  description = "The data_dir of the clients' configuration"
}

variable "api_url" {
  type    = string
  default = "https://api.digitalocean.com/"
}

variable "owner" {
  type        = string
  description = "A name of this cluster that no other has with your DigitalOcean account: letters, digits, :, - and _"

  validation {
    condition     = var.owner != ""
    error_message = "The owner must not be empty: it says which volumes are this cluster's."
  }
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Where to run; Nomad before 1.5 takes no wildcard: -var='datacenters=[\"dc1\"]'"
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "log" {
  type        = string
  default     = "info"
  description = "What is logged: error, warn, info or debug"
}

job "do-csi-plugin" {
  type        = "system"
  datacenters = var.datacenters
  namespace   = var.namespace

  update {
    max_parallel = 1
    stagger      = "10s"
  }

  group "plugin" {
    restart {
      attempts = 5
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    task "plugin" {
      driver = "raw_exec"

      config {
        command = var.command
        # Volumes carry this name, so that no other cluster takes them for its own or deletes them.
        args = ["--do-tag=${var.owner}", "--default-mount-flags=nosuid,nodev", "--release-unused=2m"]
      }

      # nomad var put nomad/jobs/do-csi-plugin token=dop_v1_...
      template {
        data        = "{{ with nomadVar \"nomad/jobs/do-csi-plugin\" }}{{ .token }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/token"
        perms       = "400"
        # The plugin reads the file again when it changes, at the latest when it is told to, so a new token needs no restart.
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      # The endpoint is not here: Nomad sets CSI_ENDPOINT to the path on the host.
      env {
        DIGITALOCEAN_ACCESS_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/token"
        DIGITALOCEAN_API_URL           = var.api_url
        RUST_LOG                       = var.log
      }

      csi_plugin {
        id                     = "digitalocean"
        type                   = "monolith"
        mount_dir              = "/csi"
        stage_publish_base_dir = "${var.data_dir}/client/csi/monolith/digitalocean"
        health_timeout         = "1m"
      }

      kill_timeout = "100s"

      resources {
        cpu = 50
        # As in plugin.nomad.hcl; checks of large ext4 volumes may take more.
        memory     = 256
        memory_max = 1024
      }
    }
  }
}
