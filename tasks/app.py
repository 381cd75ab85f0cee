"""The Celery app. Celery reads the settings from `tasks.celeryconfig` when it first needs them."""

from celery import Celery

app = Celery("tidemill")
app.config_from_object("tasks.celeryconfig")
