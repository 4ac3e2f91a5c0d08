[[- if eq (var "mode" .) "split" -]]
job "do-csi-node" {
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

  group "node" {
    restart {
      attempts = 5
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }
[[- template "monitoring" . ]]

    task "node" {
      driver = "docker"

      config {
        image      = [[ var "image" . | quote ]]
[[- if var "monitoring" . ]]
        ports      = ["health"]
        args       = ["--mode=node", "--default-mount-flags=nosuid,nodev", "--debug-addr=0.0.0.0:9810"]
[[- else ]]
        args       = ["--mode=node", "--default-mount-flags=nosuid,nodev"]
[[- end ]]
        privileged = true
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
        RUST_LOG = [[ var "log" . | quote ]]
      }

      csi_plugin {
        id             = [[ var "plugin_id" . | quote ]]
        type           = "node"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

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
