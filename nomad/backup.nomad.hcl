# Takes a snapshot of a volume every night, and keeps some of those before it. Nomad 1.4 and later.

variable "volume" {
  type        = string
  default     = "postgres"
  description = "The volume: its name at DigitalOcean, or its id there"
}

variable "keep" {
  type        = string
  default     = "daily=7,weekly=4"
  description = "How many to keep, 24 at most: hourly, daily, weekly, monthly"
}

variable "cron" {
  type        = string
  default     = "30 2 * * *"
  description = "When: minute, hour, day, month, weekday, in UTC; at most once in ten minutes"
}

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
  description = "The same name of this cluster as in the plugin's job"

  validation {
    condition     = var.owner != ""
    error_message = "The owner must not be empty: it says whose the snapshots are."
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

# For another volume, another job: copy this file and change the name.
job "backup-postgres" {
  type        = "batch"
  datacenters = var.datacenters
  namespace   = var.namespace

  periodic {
    cron             = var.cron
    prohibit_overlap = true
  }

  group "backup" {
    # DigitalOcean takes one snapshot of a volume in ten minutes. Who took another one just before is waited for.
    restart {
      attempts = 2
      interval = "1h"
      delay    = "10m"
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "backup" {
      driver = "docker"

      config {
        image = var.image
        args  = ["snapshot", "--volume=${var.volume}", "--keep=${var.keep}", "--do-tag=${var.owner}"]
        # It only talks to DigitalOcean.
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }

      # nomad var put nomad/jobs/backup-postgres token=dop_v1_...
      template {
        data        = "{{ with nomadVar \"nomad/jobs/backup-postgres\" }}{{ .token }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/token"
        perms       = "400"
      }

      env {
        DIGITALOCEAN_ACCESS_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/token"
        DIGITALOCEAN_API_URL           = var.api_url
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
