# A service that keeps its state on a volume: PostgreSQL on the volume "postgres", which postgres.volume.hcl makes.
# Nomad 1.8 and later; legacy/postgres.nomad.hcl is the same for Nomad 1.1 to 1.7.

variable "image" {
  type    = string
  default = "docker.io/library/postgres:16"
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

job "postgres" {
  type        = "service"
  datacenters = var.datacenters
  namespace   = var.namespace

  group "postgres" {
    # A volume of DigitalOcean is on one droplet at a time, so there is one of it. Nomad 1.3 and later refuse more.
    count = 1

    # The old one must be gone before the new one can have the volume.
    update {
      max_parallel     = 1
      canary           = 0
      healthy_deadline = "5m"
    }

    # When this client is cut off from the servers for this long, it stops the task by itself. The volume can then move
    # without anything writing to it on both sides.
    disconnect {
      stop_on_client_after = "1m"
      replace              = true
    }

    # The volume may be on its way from another node.
    reschedule {
      delay          = "10s"
      delay_function = "exponential"
      max_delay      = "2m"
      unlimited      = true
    }

    network {
      port "postgres" {
        to = 5432
      }
    }

    service {
      name     = "postgres"
      port     = "postgres"
      provider = "nomad"

      check {
        type     = "tcp"
        interval = "10s"
        timeout  = "2s"
      }
    }

    volume "data" {
      type            = "csi"
      source          = "postgres"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "postgres" {
      driver = "docker"

      config {
        image = var.image
        ports = ["postgres"]
      }

      volume_mount {
        volume      = "data"
        destination = "/var/lib/postgresql/data"
      }

      # nomad var put nomad/jobs/postgres password=...
      template {
        # As JSON, since a bare # would begin a comment in a file of variables.
        data        = "POSTGRES_PASSWORD={{ with nomadVar \"nomad/jobs/postgres\" }}{{ .password.Value | toJSON }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/postgres.env"
        env         = true
      }

      env {
        # A directory below the mount: the root of an ext4 file system has lost+found in it, and initdb wants none.
        PGDATA = "/var/lib/postgresql/data/pgdata"
      }

      # PostgreSQL's fast shutdown, and time for it to write everything down before the volume is unmounted.
      kill_signal  = "SIGINT"
      kill_timeout = "30s"

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
