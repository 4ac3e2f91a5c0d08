# The node service by itself, on every client. Nomad 1.3.2 and later.
#
# It formats, mounts and unmounts. It needs privileges and no token, and controller.nomad.hcl beside it.

variable "image" {
  type        = string
  default     = "do-csi-plugin:0.2.0"
  description = "The image, as your clients can pull it"
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

job "do-csi-node" {
  type        = "system"
  datacenters = var.datacenters
  namespace   = var.namespace

  update {
    max_parallel = 1
    stagger      = "10s"
  }

  # Mounts are made by the kernel, and only a privileged container may make them.
  constraint {
    attribute = "${attr.driver.docker.privileged.enabled}"
    value     = "true"
  }

  group "node" {
    restart {
      attempts = 5
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    task "node" {
      driver = "docker"

      config {
        image      = var.image
        # Volumes carry files from one task to another: none is a device node, and none gives its caller its owner's rights.
        args       = ["--mode=node", "--default-mount-flags=nosuid,nodev"]
        # Only a privileged container may open disks that come after its start. The plugin gives up what it does not use of that.
        privileged = true
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

      env {
        RUST_LOG = var.log
      }

      csi_plugin {
        id             = "digitalocean"
        type           = "node"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

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
