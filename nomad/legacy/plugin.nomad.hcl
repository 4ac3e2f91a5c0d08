# The plugin, with its token from a file on each client. Nomad 0.11 and later.
#
# Nomad 0.11 has no variables in job files, so values are written into this file.
#
# On every client, as root, before the job is run:
#   install -d -m 700 /etc/do-csi-plugin
#   printf %s 'dop_v1_...' > /etc/do-csi-plugin/token
#
# From Nomad 1.0 on, the client's configuration must let containers have directories of the host:
#   plugin "docker" { config { volumes { enabled = true } } }

job "do-csi-plugin" {
  # Your datacenters: Nomad before 1.5 takes no wildcard.
  datacenters = ["dc1"]
  type        = "system"

  # One client after the other, so that calls always find a plugin that answers.
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
      driver = "docker"

      config {
        image      = "do-csi-plugin:0.2.0"
        privileged = true

        # The plugin reads the token's file again when it changes, so a new token needs no restart.
        volumes = ["/etc/do-csi-plugin:/etc/do-csi-plugin:ro"]

        # CLUSTER_NAME is a name of this cluster that no other has with your DigitalOcean account.
        args = [
          "--endpoint=unix:///csi/csi.sock",
          "--token-file=/etc/do-csi-plugin/token",
          "--do-tag=CLUSTER_NAME",
          "--default-mount-flags=nosuid,nodev",
          "--release-unused=2m",
        ]

        # Nothing of the image is written to. cryptsetup makes a lock in /run.
        readonly_rootfs = true

        mounts {
          type   = "tmpfs"
          target = "/run"

          tmpfs_options {
            size = 1000000
          }
        }
      }

      csi_plugin {
        id        = "digitalocean"
        type      = "monolith"
        mount_dir = "/csi"
      }

      kill_timeout = "100s"

      resources {
        cpu    = 50
        memory = 256
      }
    }
  }
}
