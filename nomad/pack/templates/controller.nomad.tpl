[[- if eq (var "mode" .) "split" -]]
[[ if eq (var "do_region" .) "" ]][[ fail "split needs do_region, the region of the volumes, such as fra1" ]][[ end -]]
job "do-csi-controller" {
  type = "service"
[[ template "location" . ]]

  update {
    max_parallel = 1
  }

  group "controller" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }
[[- template "monitoring" . ]]

    task "controller" {
      driver = "docker"

      config {
        image = [[ var "image" . | quote ]]
[[- if var "monitoring" . ]]
        ports = ["health"]
        args  = ["--mode=controller", "--region=[[ var "do_region" . ]]", "--do-tag=[[ var "owner" . ]]", "--debug-addr=0.0.0.0:9810"]
[[- else ]]
        args  = ["--mode=controller", "--region=[[ var "do_region" . ]]", "--do-tag=[[ var "owner" . ]]"]
[[- end ]]
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        readonly_rootfs = true
      }

      # nomad var put nomad/jobs/do-csi-controller token=dop_v1_...
      template {
        data          = "{{ with nomadVar \"nomad/jobs/do-csi-controller\" }}{{ .token }}{{ end }}"
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
        type           = "controller"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

      kill_timeout = "100s"

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
[[- end -]]
