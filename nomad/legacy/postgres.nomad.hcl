# PostgreSQL on the volume "postgres", with its password from a file on each client. Nomad 1.1 to 1.7.
#
# Later versions take postgres.nomad.hcl, one directory up. The service is registered in Consul, which the clients need;
# without Consul, take the service block out.
#
# On every client, as root, before the job is run:
#   install -d -m 700 /etc/postgres
#   printf %s 'PASSWORD' > /etc/postgres/password
#
# The client's configuration must let containers have directories of the host:
#   plugin "docker" { config { volumes { enabled = true } } }

job "postgres" {
  type        = "service"
  datacenters = ["dc1"]

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
    # without anything writing to it on both sides. Nomad 1.10 and later ignore this line.
    stop_after_client_disconnect = "1m"

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
      name = "postgres"
      port = "postgres"

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
        image = "docker.io/library/postgres:16"
        ports = ["postgres"]

        volumes = ["/etc/postgres:/etc/postgres:ro"]
      }

      volume_mount {
        volume      = "data"
        destination = "/var/lib/postgresql/data"
      }

      env {
        # A directory below the mount: the root of an ext4 file system has lost+found in it, and initdb wants none.
        PGDATA = "/var/lib/postgresql/data/pgdata"

        POSTGRES_PASSWORD_FILE = "/etc/postgres/password"
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
