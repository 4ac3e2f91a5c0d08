# The plugin, with its token from Vault. Nomad 0.11 and later; for 1.10 and later, see the vault block.
#
# Values are written into this file, since Nomad 0.11 has no variables in job files. In Vault, with a secrets engine of
# version 2 at secret/:
#   vault kv put secret/do-csi-plugin token=dop_v1_...
#   vault policy write do-csi-plugin - <<< 'path "secret/data/do-csi-plugin" { capabilities = ["read"] }'

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

        # CLUSTER_NAME is a name of this cluster that no other has with your DigitalOcean account.
        args = [
          "--endpoint=unix:///csi/csi.sock",
          "--token-file=${NOMAD_SECRETS_DIR}/token",
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

      # Nomad 1.10 and later give tasks access to Vault by their identity: there, write vault {} and give the policy to the
      # role in Vault.
      vault {
        policies = ["do-csi-plugin"]
      }

      template {
        data        = "{{ with secret \"secret/data/do-csi-plugin\" }}{{ .Data.data.token }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/token"
        perms       = "400"
        # The plugin reads the file again when it changes, at the latest when it is told to, so a new token needs no restart.
        change_mode   = "signal"
        change_signal = "SIGHUP"
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
