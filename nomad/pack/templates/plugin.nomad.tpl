[[- if eq (var "mode" .) "monolith" -]]
job "do-csi-plugin" {
  type = "system"
[[ template "location" . ]]

  update {
    max_parallel = 1
    stagger      = "10s"
  }

  constraint {
    attribute = "${attr.driver.docker.privileged.enabled}"
    value     = "true"
  }

  group "plugin" {
    restart {
      attempts = 5
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }
[[- template "monitoring" . ]]

    task "plugin" {
      driver = "docker"

      config {
        image      = [[ var "image" . | quote ]]
        privileged = true
[[- if var "monitoring" . ]]
        ports      = ["health"]
        args       = ["--do-tag=[[ var "owner" . ]]", "--default-mount-flags=nosuid,nodev", "--release-unused=2m", "--debug-addr=0.0.0.0:9810"]
[[- else ]]
        args       = ["--do-tag=[[ var "owner" . ]]", "--default-mount-flags=nosuid,nodev", "--release-unused=2m"]
[[- end ]]
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
        data          = "{{ with nomadVar \"nomad/jobs/do-csi-plugin\" }}{{ .token }}{{ end }}"
        destination   = "${NOMAD_SECRETS_DIR}/token"
        perms         = "400"
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      env {
        DIGITALOCEAN_ACCESS_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/token"
        DIGITALOCEAN_API_URL           = [[ var "api_url" . | quote ]]
        RUST_LOG                       = [[ var "log" . | quote ]]
      }

      csi_plugin {
        id             = [[ var "plugin_id" . | quote ]]
        type           = "monolith"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

      # Clients allow a task 30 s to end, unless their configuration has client { max_kill_timeout = "2m" }.
      kill_timeout = "100s"

      resources {
        cpu        = 50
        memory     = 256
        memory_max = 1024
      }
    }
  }
}
[[- end -]]
