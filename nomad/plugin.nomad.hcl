# The plugin as one job: controller and node service together, on every client. Nomad 1.4 and later.
#
# This is the simplest way to run it, and a volume stays usable as long as any client is left. It replaces DigitalOcean's
# official driver in place: keep your job and change the image. In this file the token is not among the arguments, where
# everyone can read it.

variable "image" {
  type        = string
  default     = "do-csi-plugin:0.2.0"
  description = "The image, as your clients can pull it"
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

variable "log" {
  type        = string
  default     = "info"
  description = "What is logged: error, warn, info or debug"
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

job "do-csi-plugin" {
  type        = "system"
  datacenters = var.datacenters
  namespace   = var.namespace

  # One client after the other, so that calls always find a plugin that answers.
  update {
    max_parallel = 1
    stagger      = "10s"
  }

  # Mounts are made by the kernel, and only a privileged container may make them.
  constraint {
    attribute = "${attr.driver.docker.privileged.enabled}"
    value     = "true"
  }

  group "plugin" {
    # A plugin that cannot start now may do so in a minute; without it no volume of this client can be freed.
    restart {
      attempts = 5
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    task "plugin" {
      driver = "docker"

      config {
        image      = var.image
        # Only a privileged container may open disks that come after its start. The plugin gives up what it does not use of that.
        privileged = true
        # Volumes carry this name, so that no other cluster takes them for its own or deletes them.
        # A volume that nobody has used on its client for two minutes is detached: Nomad forgets attachments.
        # Volumes carry files from one task to another: none is a device node, and none gives its caller its owner's rights.
        args = ["--do-tag=${var.owner}", "--default-mount-flags=nosuid,nodev", "--release-unused=2m"]
        # "--only-tag=${var.owner}-volumes" among these: only what carries that tag is touched, whoever registers a volume.
        # Nothing of the image is written to. cryptsetup makes a lock in /run.
        readonly_rootfs = true

        mount {
          type   = "tmpfs"
          target = "/run"

          tmpfs_options {
            size = 1000000
          }
        }
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

      env {
        DIGITALOCEAN_ACCESS_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/token"
        DIGITALOCEAN_API_URL           = var.api_url
        RUST_LOG                       = var.log
      }

      csi_plugin {
        id             = "digitalocean"
        type           = "monolith"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

      # On SIGTERM the plugin lets running calls finish, for 90 s at most. Clients allow a task 30 s unless their
      # configuration has client { max_kill_timeout = "2m" }.
      kill_timeout = "100s"

      resources {
        cpu = 50
        # The plugin itself takes 10 to 15 MB, and mkfs 13 MB for a volume of any size. A check of ext4 after a crash takes
        # 24 MB for 1 TiB and 89 MB for 8 TiB, more when the file system is full, and three may run at once. A check that
        # is killed for want of memory begins anew on the next node: with many or full ext4 volumes of more than 4 TiB
        # raise this, or let memory_max count by allowing oversubscription in the scheduler's configuration.
        memory     = 256
        memory_max = 1024
      }
    }
  }
}
