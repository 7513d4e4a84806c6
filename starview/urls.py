"""No pages: the web service serves them. Django's checks want a URL configuration."""

from django.urls import URLPattern

urlpatterns: list[URLPattern] = []
