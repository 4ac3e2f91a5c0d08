[[- define "location" -]]
[[ if eq (var "owner" .) "" ]][[ fail "owner must not be empty: it says which volumes are this cluster's" ]][[ end -]]
  datacenters = [[ var "datacenters" . | toJson ]]
  namespace   = [[ var "namespace" . | quote ]]
[[- if ne (var "node_pool" .) "" ]]
  node_pool   = [[ var "node_pool" . | quote ]]
[[- end ]]
[[- end -]]

[[- define "monitoring" -]]
[[- if var "monitoring" . ]]

    network {
      port "health" {
        to = 9810
      }
    }

    service {
      name     = "do-csi-plugin"
      port     = "health"
      provider = "nomad"

      check {
        type     = "http"
        path     = "/readyz"
        interval = "30s"
        timeout  = "5s"
      }
    }
[[- end ]]
[[- end -]]
