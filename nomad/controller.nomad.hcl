# The controller service by itself. Nomad 1.4 and later.
#
# It talks to DigitalOcean and holds the token. It needs no privileges and runs anywhere. With it, node.nomad.hcl runs on
# every client, without a token.

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

variable "region" {
  type        = string
  description = "The region of the volumes, such as fra1"
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

job "do-csi-controller" {
  type        = "service"
  datacenters = var.datacenters
  namespace   = var.namespace

  # One after the other, so that calls always find a plugin that answers.
  update {
    max_parallel = 1
  }

  group "controller" {
    # Two, on two clients: while one is being moved, volumes can still be freed.
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    task "controller" {
      driver = "docker"

      config {
        image = var.image
        # Volumes carry this name, so that no other cluster takes them for its own or deletes them.
        args = ["--mode=controller", "--region=${var.region}", "--do-tag=${var.owner}"]
        # "--only-tag=${var.owner}-volumes" among these: only what carries that tag is touched, whoever registers a volume.
        # It needs nothing of the machine but its socket, whose directory is root's and closed to all others.
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        readonly_rootfs = true
      }

      # nomad var put nomad/jobs/do-csi-controller token=dop_v1_...
      template {
        data        = "{{ with nomadVar \"nomad/jobs/do-csi-controller\" }}{{ .token }}{{ end }}"
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
