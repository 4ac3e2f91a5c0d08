variable "owner" {
  type        = string
  description = "A name of this cluster that no other cluster has with your DigitalOcean account: letters, digits, :, - and _"
}

variable "image" {
  type        = string
  description = "The plugin's image, as your clients can pull it"
}

variable "region" {
  type        = string
  description = "The region of your droplets, such as fra1"
}

variable "datacenters" {
  type        = list(string)
  description = "The datacenters of Nomad to run in"
  default     = ["*"]
}

variable "size" {
  type        = number
  description = "The size of the volume in GiB. A volume never gets smaller"
  default     = 10
}

variable "plugin_token" {
  type        = string
  description = "DigitalOcean's token for the plugin"
  sensitive   = true
  ephemeral   = true
}

variable "plugin_token_version" {
  type        = number
  description = "Raise it by one when the token changes"
  default     = 1
}

variable "postgres_password" {
  type        = string
  description = "The password of the database"
  sensitive   = true
  ephemeral   = true
}

variable "postgres_password_version" {
  type        = number
  description = "Raise it by one when the password changes"
  default     = 1
}
