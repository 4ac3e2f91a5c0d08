variable "owner" {
  description = "A name of this cluster that no other cluster has with your DigitalOcean account: letters, digits, :, - and _"
  type        = string
}

variable "image" {
  description = "The plugin's image, as your clients can pull it"
  type        = string
  default     = "do-csi-plugin:0.2.0"
}

variable "mode" {
  description = "monolith: one job with both services. split: controllers with the token, and nodes without it"
  type        = string
  default     = "monolith"
}

variable "do_region" {
  description = "The region of the volumes, such as fra1. Only for split; in monolith the droplet says it"
  type        = string
  default     = ""
}

variable "monitoring" {
  description = "Opens port 9810 of each plugin for /livez, /readyz, /health and /metrics, and registers it as the service do-csi-plugin"
  type        = bool
  default     = false
}

variable "plugin_id" {
  description = "The plugin's id in Nomad, which volumes name. Do not change it while volumes are in use"
  type        = string
  default     = "digitalocean"
}

variable "datacenters" {
  description = "The datacenters to run in. Nomad before 1.5 takes no wildcard"
  type        = list(string)
  default     = ["*"]
}

variable "namespace" {
  description = "The namespace of the jobs"
  type        = string
  default     = "default"
}

variable "node_pool" {
  description = "The node pool to run in, such as all. Needs Nomad 1.6; empty: the pool default"
  type        = string
  default     = ""
}

variable "log" {
  description = "What is logged: error, warn, info or debug"
  type        = string
  default     = "info"
}

variable "api_url" {
  description = "DigitalOcean's API"
  type        = string
  default     = "https://api.digitalocean.com/"
}
